//! What the simulated programs say about themselves: services, operations and attributes by OpenTelemetry's semantic
//! conventions (1.37).
//!
//! Draws from a seeded [`Random`] alone. Sizes matter here: the tests hold shape S and L to their bytes a span.

use std::sync::Arc;

use crate::random::Random;

/// The value of an attribute.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A string.
    Text(Arc<str>),
    /// A number.
    Int(i64),
    /// Truth.
    Bool(bool),
}

/// What is filled in anew for every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hole {
    /// Nothing.
    None,
    /// The last six digits of the value.
    SixDigits,
    /// The last two digits of the key and the last three of the value.
    KeyAndValue,
}

/// A key, its value and what of them changes.
#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    /// The key.
    pub(crate) key: Arc<str>,
    /// The value.
    pub(crate) value: Value,
    /// What changes.
    pub(crate) hole: Hole,
}

impl Attribute {
    /// A string that stays.
    pub(crate) fn text(key: &str, value: impl AsRef<str>) -> Self {
        Self { key: key.into(), value: Value::Text(value.as_ref().into()), hole: Hole::None }
    }

    fn int(key: &str, value: i64) -> Self {
        Self { key: key.into(), value: Value::Int(value), hole: Hole::None }
    }

    fn bool(key: &str, value: bool) -> Self {
        Self { key: key.into(), value: Value::Bool(value), hole: Hole::None }
    }

    /// `enduser.id`: one of a million, by trace.
    fn user() -> Self {
        let value = Value::Text("user-000000".into());
        Self { key: "enduser.id".into(), value, hole: Hole::SixDigits }
    }

    /// `attr_NN=val_NNN`, as Jaeger's generator names them.
    pub(crate) fn numbered() -> Self {
        Self { key: "attr_00".into(), value: Value::Text("val_000".into()), hole: Hole::KeyAndValue }
    }
}

/// What a span does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    HttpServer,
    HttpClient,
    RpcServer,
    RpcClient,
    Database,
    Internal,
}

impl Role {
    /// OTLP's number of its span kind.
    pub(crate) fn kind(self) -> u64 {
        match self {
            Self::Internal => 1,
            Self::HttpServer | Self::RpcServer => 2,
            Self::HttpClient | Self::RpcClient | Self::Database => 3,
        }
    }
}

const SERVICES: [&str; 12] = [
    "frontend",
    "checkout",
    "cart",
    "product-catalog",
    "recommendation",
    "currency",
    "payment",
    "shipping",
    "email",
    "ad",
    "quote",
    "accounting",
];

/// The name of service `index`: a shop of a dozen, then numbered ones.
pub(crate) fn service_name(index: usize) -> String {
    match SERVICES.get(index) {
        Some(name) => (*name).to_owned(),
        None => format!("service-{index:03}"),
    }
}

const ROUTES: [&str; 5] = [
    "/api/products/{product_id}",
    "/api/cart/{user_id}/items",
    "/api/checkout/{order_id}",
    "/api/recommendations",
    "/api/shipping/{order_id}",
];
const METHODS: [&str; 4] = ["GetProduct", "ListItems", "PlaceOrder", "GetQuote"];
const TABLES: [&str; 4] = ["products", "orders", "cart_items", "shipments"];
const FUNCTIONS: [&str; 4] = ["validate_order", "render_page", "price_items", "select_offer"];
const PRODUCTS: [&str; 8] = [
    "OLJCESPC7Z",
    "66VCHSJNUP",
    "1YMWWN1N4O",
    "L9ECAV7KIM",
    "2ZYFJ3GM2N",
    "0PUK6V6EV0",
    "LS4PSXUNUM",
    "9SIQT8TOJO",
];
const AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";

/// A span's name and attributes.
pub(crate) struct Said {
    pub(crate) name: String,
    pub(crate) attributes: Vec<Attribute>,
}

fn address(random: &mut Random) -> String {
    format!("10.42.{}.{}", random.below(16), random.below(250))
}

fn host(service: &str) -> String {
    format!("{service}.shop-production.svc.cluster.local")
}

/// What a span of `role` in `service` says: eight attributes, or fifteen when it is `talkative`.
pub(crate) fn say(role: Role, service: &str, talkative: bool, random: &mut Random) -> Said {
    let mut said = match role {
        Role::HttpServer | Role::HttpClient => http(role, service, random),
        Role::RpcServer | Role::RpcClient => rpc(service, random),
        Role::Database => database(random),
        Role::Internal => internal(service, random),
    };
    if talkative {
        said.attributes.extend(details(role, service, random));
    }
    said
}

fn http(role: Role, service: &str, random: &mut Random) -> Said {
    let route = random.pick(&ROUTES);
    let product = random.pick(&PRODUCTS);
    let path =
        route.replace("{product_id}", product).replace("{user_id}", "u71").replace("{order_id}", "o93");
    let method = random.pick(&["GET", "GET", "POST"]);
    let mut attributes = vec![
        Attribute::text("http.request.method", method),
        Attribute::text("server.address", host(service)),
        Attribute::int("http.response.status_code", 200),
        Attribute::text("network.protocol.version", "1.1"),
        Attribute::text("network.peer.address", address(random)),
    ];
    if role == Role::HttpServer {
        attributes.extend([
            Attribute::text("http.route", route),
            Attribute::text("url.path", &path),
            Attribute::user(),
        ]);
        return Said { name: format!("{method} {route}"), attributes };
    }
    attributes.extend([
        Attribute::text("url.full", format!("http://{}:8080{path}", host(service))),
        Attribute::int("server.port", 8080),
        Attribute::text("app.product.id", product),
    ]);
    Said { name: method.to_owned(), attributes }
}

fn rpc(service: &str, random: &mut Random) -> Said {
    let method = random.pick(&METHODS);
    let package = format!("shop.production.v1.{}Service", service.replace('-', "_"));
    let attributes = vec![
        Attribute::text("rpc.system", "grpc"),
        Attribute::text("rpc.service", &package),
        Attribute::text("rpc.method", method),
        Attribute::int("rpc.grpc.status_code", 0),
        Attribute::text("server.address", host(service)),
        Attribute::text("network.peer.address", address(random)),
        Attribute::int("network.peer.port", 30_000 + i64::try_from(random.below(30_000)).unwrap_or(0)),
        Attribute::text("app.product.id", random.pick(&PRODUCTS)),
    ];
    Said { name: format!("{package}/{method}"), attributes }
}

fn database(random: &mut Random) -> Said {
    let table = random.pick(&TABLES);
    let operation = random.pick(&["SELECT", "SELECT", "INSERT", "UPDATE"]);
    let query = match operation {
        "INSERT" => format!("INSERT INTO {table} (id, price) VALUES ($1, $2)"),
        "UPDATE" => format!("UPDATE {table} SET price = $2 WHERE id = $1"),
        _ => format!("SELECT id, name, price FROM {table} WHERE id = $1"),
    };
    let attributes = vec![
        Attribute::text("db.system.name", "postgresql"),
        Attribute::text("db.namespace", "shop"),
        Attribute::text("db.collection.name", table),
        Attribute::text("db.operation.name", operation),
        Attribute::text("db.query.text", query),
        Attribute::text("server.address", "postgres-primary.shop-production.svc.cluster.local"),
        Attribute::int("server.port", 5432),
        Attribute::text("network.peer.address", address(random)),
    ];
    Said { name: format!("{operation} {table}"), attributes }
}

fn internal(service: &str, random: &mut Random) -> Said {
    let function = random.pick(&FUNCTIONS);
    let attributes = vec![
        Attribute::text("code.function.name", format!("shop.production.{service}.{function}")),
        Attribute::text("code.file.path", format!("/usr/src/app/services/{service}/handlers/request.py")),
        Attribute::int("code.line.number", 40 + i64::try_from(random.below(400)).unwrap_or(0)),
        Attribute::text("thread.name", format!("request-worker-{:02}", random.below(32))),
        Attribute::int("thread.id", 140_000 + i64::try_from(random.below(64)).unwrap_or(0)),
        Attribute::text("app.product.id", random.pick(&PRODUCTS)),
        Attribute::text("feature_flag.key", random.pick(&["newCheckout", "fastQuote", "adsV2"])),
        Attribute::bool("app.cache.hit", random.below(3) > 0),
    ];
    Said { name: function.to_owned(), attributes }
}

/// Seven more attributes, as richly configured programs send them.
fn details(role: Role, service: &str, random: &mut Random) -> Vec<Attribute> {
    let session = format!("{:016x}-{:016x}", random.next(), random.next());
    let long = match role {
        Role::HttpServer | Role::HttpClient => Attribute::text("user_agent.original", AGENT),
        Role::RpcServer | Role::RpcClient => Attribute::text(
            "rpc.request.metadata",
            format!(
                "grpc-java-netty/1.77.0; authority={}; accept-encoding=identity,gzip; te=trailers",
                host(service)
            ),
        ),
        Role::Database => Attribute::text(
            "db.query.summary",
            "SELECT p.id, p.name, p.price, s.stock FROM products p JOIN stock s ON s.id = p.id LIMIT $2",
        ),
        Role::Internal => Attribute::text(
            "app.decision.explanation",
            "cheapest warehouse with stock within two days, weighted by carrier reliability and load",
        ),
    };
    vec![
        long,
        Attribute::text("session.id", session),
        Attribute::text("deployment.zone", random.pick(&["eu-central-1a", "eu-central-1b", "us-east-1c"])),
        Attribute::text("app.tenant.plan", random.pick(&["free-plan", "team-plan", "enterprise-plan"])),
        Attribute::int("app.payload.size_bytes", i64::try_from(random.below(90_000)).unwrap_or(0)),
        Attribute::text(
            "app.experiment.group",
            random.pick(&["control-group", "treatment-a", "treatment-b"]),
        ),
        Attribute::text("app.release.build", "2026.11.24-rc3+build.4711"),
    ]
}

/// What the resource of `service` says.
pub(crate) fn resource(service: &str, index: usize) -> Vec<Attribute> {
    vec![
        Attribute::text("service.name", service),
        Attribute::text("service.namespace", "shop"),
        Attribute::text("service.version", format!("2.{}.1", index % 10)),
        Attribute::text("service.instance.id", format!("{service}-7d9c5b6f4-x{index:03}")),
        Attribute::text("host.name", format!("node-{:02}", index % 8)),
        Attribute::text("k8s.namespace.name", "shop"),
        Attribute::text("k8s.pod.name", format!("{service}-7d9c5b6f4-x{index:03}")),
        Attribute::text("telemetry.sdk.name", "opentelemetry"),
        Attribute::text("telemetry.sdk.language", ["go", "java", "python", "nodejs"][index % 4]),
        Attribute::text("telemetry.sdk.version", "1.41.0"),
    ]
}
