use std::{sync::Arc, time::Duration};

use rustls::crypto::ring;
use ureq::{
    Agent, Error,
    tls::{RootCerts, TlsConfig},
};

/// From the name to the last byte.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: u32 = 3;

/// The text at a URL with `https`, `max` bytes at most. Whom the system trusts is trusted (`SSL_CERT_FILE` is heeded), and a
/// proxy in the environment is used.
pub fn fetch(url: &str, max: u64) -> Result<String, Error> {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    let agent: Agent = Agent::config_builder()
        .https_only(true)
        .timeout_global(Some(PATIENCE))
        .max_redirects(MAX_REDIRECTS)
        .tls_config(tls)
        .build()
        .into();
    agent.get(url).call()?.into_body().with_config().limit(max).read_to_string()
}
