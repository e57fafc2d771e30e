//! What can go wrong with serving.

/// Why the server did not start or did not last.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connections could not be served.
    #[error("query server failed")]
    Serve(#[source] tonic::transport::Error),
    /// The embedded descriptors are not what the reflection service understands.
    #[error("embedded descriptors cannot be served by reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}
