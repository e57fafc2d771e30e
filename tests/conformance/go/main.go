// grpc-go: makes the calls it is told to and prints what it heard; see ../python/client.py for both formats. Judges nothing.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The name of the codec is told to the server as the content type's subtype.
type bytesCodec struct{}

func (bytesCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = append([]byte(nil), data...); return nil }
func (bytesCodec) Name() string                       { return "proto" }

type order struct {
	Name, Path, Body, Tenant string
	Gzip                     bool
}

type heard struct {
	Name    string `json:"name"`
	Code    uint32 `json:"code"`
	Message string `json:"message"`
	Details string `json:"details"`
	Answer  string `json:"answer"`
}

func call(conn *grpc.ClientConn, todo order) heard {
	body, err := os.ReadFile(todo.Body)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if todo.Tenant != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-scope-orgid", todo.Tenant)
	}
	var answer []byte
	var trailers metadata.MD
	options := []grpc.CallOption{grpc.ForceCodec(bytesCodec{}), grpc.Trailer(&trailers)}
	if todo.Gzip {
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	err = conn.Invoke(ctx, todo.Path, &body, &answer, options...)
	state := status.Convert(err)
	var details string
	if found := trailers.Get("grpc-status-details-bin"); len(found) > 0 {
		details = hex.EncodeToString([]byte(found[0]))
	}
	return heard{todo.Name, uint32(state.Code()), state.Message(), details, hex.EncodeToString(answer)}
}

func main() {
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	cases, err := os.Open(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	for lines := bufio.NewScanner(cases); lines.Scan(); {
		var todo order
		if err := json.Unmarshal(lines.Bytes(), &todo); err != nil {
			log.Fatal(err)
		}
		line, err := json.Marshal(call(conn, todo))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(line))
	}
}
