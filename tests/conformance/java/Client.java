// grpc-java on Netty: makes the calls it is told to and prints what it heard; see ../python/client.py for both formats.
// Judges nothing.

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.concurrent.TimeUnit;

final class Client {
    private static final Metadata.Key<String> TENANT =
            Metadata.Key.of("x-scope-orgid", Metadata.ASCII_STRING_MARSHALLER);
    private static final Metadata.Key<byte[]> DETAILS =
            Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

    private record Order(String name, String path, String body, boolean gzip, String tenant) {}

    /** Bytes in, bytes out. */
    private static final MethodDescriptor.Marshaller<byte[]> BYTES = new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] value) {
            return new ByteArrayInputStream(value);
        }

        @Override
        public byte[] parse(InputStream stream) {
            try {
                return stream.readAllBytes();
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }
    };

    private static JsonObject call(Channel channel, Order order) throws IOException {
        byte[] body = Files.readAllBytes(Path.of(order.body));
        Metadata metadata = new Metadata();
        if (!order.tenant.isEmpty()) {
            metadata.put(TENANT, order.tenant);
        }
        MethodDescriptor<byte[], byte[]> method = MethodDescriptor.<byte[], byte[]>newBuilder(BYTES, BYTES)
                .setType(MethodDescriptor.MethodType.UNARY)
                .setFullMethodName(order.path.substring(1))
                .build();
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(60, TimeUnit.SECONDS);
        if (order.gzip) {
            options = options.withCompression("gzip");
        }
        JsonObject heard = new JsonObject();
        heard.addProperty("name", order.name);
        byte[] answer = new byte[0];
        byte[] details = null;
        int code = 0;
        String message = "";
        try {
            Channel named = ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(metadata));
            answer = ClientCalls.blockingUnaryCall(named, method, options, body);
        } catch (StatusRuntimeException error) {
            code = error.getStatus().getCode().value();
            message = String.valueOf(error.getStatus().getDescription());
            details = error.getTrailers() == null ? null : error.getTrailers().get(DETAILS);
        }
        heard.addProperty("code", code);
        heard.addProperty("message", message);
        heard.addProperty("details", details == null ? "" : HexFormat.of().formatHex(details));
        heard.addProperty("answer", HexFormat.of().formatHex(answer));
        return heard;
    }

    public static void main(String[] arguments) throws Exception {
        ManagedChannel channel = NettyChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
        Gson gson = new Gson();
        for (String line : Files.readAllLines(Path.of(arguments[1]))) {
            System.out.println(gson.toJson(call(channel, gson.fromJson(line, Order.class))));
        }
        channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
}
