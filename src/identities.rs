//! TLS identities of the listeners: loaded before anything listens, and kept fresh while the appliance runs: in their
//! interval and on SIGHUP. What an identity is lies in the receiver; here is when it is looked at, and what is said of it.

use std::sync::Arc;

use ingest_receiver::{Reload, Tls};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{self, JoinSet};
use tokio::time;

use crate::config::{Config, Protocols, TlsSection};

/// What each listener identifies itself with; `None` for plain connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identities {
    pub(crate) grpc: Option<Arc<Tls>>,
    pub(crate) http: Option<Arc<Tls>>,
    pub(crate) zipkin: Option<Arc<Tls>>,
    pub(crate) jaeger_grpc: Option<Arc<Tls>>,
    pub(crate) jaeger_http: Option<Arc<Tls>>,
    pub(crate) query: Option<Arc<Tls>>,
    pub(crate) admin: Option<Arc<Tls>>,
}

/// A listener by its place in the file, and its section there.
pub(crate) type Named<'a, T> = (&'static str, Option<&'a T>);

impl Identities {
    /// Loads what `config` names.
    pub(crate) fn load(config: &Config) -> Result<Self, String> {
        let [grpc, http, zipkin, jaeger_grpc, jaeger_http, query, admin] =
            sections(config).map(|(listener, section)| match section {
                None => Ok(None),
                Some(section) => load(listener, section).map(Some),
            });
        Ok(Self {
            grpc: grpc?,
            http: http?,
            zipkin: zipkin?,
            jaeger_grpc: jaeger_grpc?,
            jaeger_http: jaeger_http?,
            query: query?,
            admin: admin?,
        })
    }

    /// Each listener that has one.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &Arc<Tls>)> {
        let Self { grpc, http, zipkin, jaeger_grpc, jaeger_http, query, admin } = self;
        let all = [
            ("otlp_grpc", grpc),
            ("otlp_http", http),
            ("zipkin", zipkin),
            ("jaeger_grpc", jaeger_grpc),
            ("jaeger_http", jaeger_http),
            ("query", query),
            ("admin", admin),
        ];
        all.into_iter().filter_map(|(listener, tls)| Some((listener, tls.as_ref()?)))
    }
}

/// Each listener's section, if it has one and listens.
pub(crate) fn sections(config: &Config) -> [Named<'_, TlsSection>; 7] {
    let Protocols { grpc, http } = &config.receivers.otlp.protocols;
    let (zipkin, jaeger) = (&config.receivers.zipkin, &config.receivers.jaeger.protocols);
    [
        ("receivers.otlp.protocols.grpc", grpc.tls.as_ref().filter(|_| grpc.enabled)),
        ("receivers.otlp.protocols.http", http.tls.as_ref().filter(|_| http.enabled)),
        ("receivers.zipkin", zipkin.tls()),
        ("receivers.jaeger.protocols.grpc", jaeger.grpc.tls()),
        ("receivers.jaeger.protocols.thrift_http", jaeger.thrift_http.tls()),
        ("query", config.query.tls.as_ref()),
        ("admin", config.admin.tls.as_ref()),
    ]
}

/// The identity that one section names.
pub(crate) fn load(listener: &str, section: &TlsSection) -> Result<Arc<Tls>, String> {
    Tls::load(&section.checked()).map_err(|error| format!("{listener}.tls: {error}"))
}

/// Looks after the identities until what is returned is dropped.
pub(crate) fn keep_fresh(identities: &Identities) -> std::io::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for (listener, tls) in identities.all() {
        // Taken only here: without TLS, SIGHUP ends the process, as it does with any program.
        tasks.spawn(keep_one_fresh(listener, Arc::clone(tls), signal(SignalKind::hangup())?));
    }
    Ok(tasks)
}

async fn keep_one_fresh(listener: &'static str, tls: Arc<Tls>, mut hangup: Signal) {
    let interval = tls.config().reload_interval;
    loop {
        let told = tokio::select! {
            () = time::sleep(interval), if !interval.is_zero() => false,
            _ = hangup.recv() => true,
        };
        let looked_at = Arc::clone(&tls);
        // It reads files, which may lie on a slow disk.
        let Ok(outcome) = task::spawn_blocking(move || looked_at.reload()).await else { continue };
        let expires_at = tls.expires_at_seconds();
        match outcome {
            Reload::Renewed => tracing::info!(listener, expires_at, "new certificate taken"),
            Reload::Kept(error) => {
                tracing::error!(listener, %error, expires_at, "new certificate cannot be used, the old one stays");
            }
            Reload::Unchanged if told => tracing::info!(listener, "certificate files are unchanged"),
            Reload::Unchanged => {}
        }
    }
}
