use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{During, LabError};

/// One certificate for all of the lab's servers, and clients that trust it and nothing else.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, for programs that take a file of trusted ones.
    pub certificate_pem: String,
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

impl Identity {
    /// Makes a key and a self-signed certificate for these addresses.
    pub fn new(addresses: &[IpAddr]) -> Result<Self, LabError> {
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let certified =
            rcgen::generate_simple_self_signed(names).during(|| "make the lab's certificate".to_owned())?;
        let certificate = certified.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .during(|| "prepare TLS for the lab's servers".to_owned())?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate).during(|| "trust the lab's certificate".to_owned())?;
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { certificate_pem: certified.cert.pem(), server: Arc::new(server), client: Arc::new(client) })
    }
}
