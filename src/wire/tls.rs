//! TLS set-up: which certificate we show and which clients we believe.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The one cryptography provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates in a PEM text.
pub fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(invalid)
}

/// The private key in a PEM text.
pub fn private_key(pem: &[u8]) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(invalid)
}

/// A server that shows `chain` and asks clients for certificates of `client_ca`, without insisting.
pub fn server(chain: &[u8], key: &[u8], client_ca: &[u8]) -> io::Result<Arc<ServerConfig>> {
    let roots = roots(client_ca)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(invalid)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(invalid)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(chain)?, private_key(key)?)
        .map_err(invalid)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Which servers a client believes.
#[derive(Clone, Copy, Debug)]
pub enum Belief<'a> {
    /// Those with a certificate of these authorities (PEM).
    In(&'a [u8]),
    /// Those whom the public believes, and whom an administrator has added to the system.
    System,
    /// Whoever is there.
    Anyone,
}

/// A client of a belief, which shows a certificate if it has one.
pub fn believer(belief: Belief<'_>, identity: Option<(&[u8], &[u8])>) -> io::Result<Arc<ClientConfig>> {
    let verifier = match belief {
        Belief::In(ca) => believing(RootCertStore::empty(), certificates(ca)?)?,
        Belief::System => believing(system_roots(), Vec::new())?,
        Belief::Anyone => anyone(),
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(invalid)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        Some((chain, key)) => {
            builder.with_client_auth_cert(certificates(chain)?, private_key(key)?).map_err(invalid)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// A client that believes only `ca`, and shows a certificate if it has one.
pub fn client(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> io::Result<Arc<ClientConfig>> {
    believer(Belief::In(ca), identity)
}

/// A client that believes the authorities that the public believes, and what an administrator has added to the system.
pub fn trusting_the_system() -> io::Result<Arc<ClientConfig>> {
    believer(Belief::System, None)
}

/// The authorities that the public believes, and what an administrator has added to the system.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Ok(system) = CertificateDer::pem_file_iter("/etc/ssl/certs/ca-certificates.crt") {
        roots.add_parsable_certificates(system.flatten());
    }
    roots
}

fn roots(pem: &[u8]) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(invalid)?;
    }
    Ok(roots)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A client that believes any certificate: for probes, which by Kubernetes' definition check nothing.
pub fn trusting_anyone() -> io::Result<Arc<ClientConfig>> {
    believer(Belief::Anyone, None)
}

/// Signatures are checked, the certificate's name and issuer are not.
pub fn anyone() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier { believed: Believed::Anyone, provider: provider() })
}

/// Believes what `roots` or one of `anchors` have signed for the server's name, and the anchors themselves.
///
/// The certificate that a server has signed for itself is often an authority's as well (`openssl req -x509` makes such
/// ones). Go's clients believe it where it is an anchor; webpki alone does not.
///
/// # Errors
///
/// If there is nobody to believe, or an anchor is malformed.
pub fn believing(
    mut roots: RootCertStore,
    anchors: Vec<CertificateDer<'static>>,
) -> io::Result<Arc<dyn ServerCertVerifier>> {
    for anchor in &anchors {
        roots.add(anchor.clone()).map_err(invalid)?;
    }
    let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(invalid)?;
    Ok(Arc::new(Verifier { believed: Believed::In { signed, anchors }, provider: provider() }))
}

/// A client's view of servers.
#[derive(Debug)]
struct Verifier {
    believed: Believed,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Believed {
    Anyone,
    In { signed: Arc<WebPkiServerVerifier>, anchors: Vec<CertificateDer<'static>> },
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.believed {
            Believed::Anyone => Ok(ServerCertVerified::assertion()),
            Believed::In { anchors, .. } if anchors.contains(shown) => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                is_of_server(shown, now).map_err(rustls::Error::InvalidCertificate)?;
                Ok(ServerCertVerified::assertion())
            }
            Believed::In { signed, .. } => signed.verify_server_cert(shown, intermediates, name, ocsp_response, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate that is believed is of a server, today.
fn is_of_server(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let (validity, now) = (certificate.validity(), now.as_secs() as i64);
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    let purposes = certificate.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    match purposes {
        Some(purposes) if !purposes.value.server_auth && !purposes.value.any => Err(CertificateError::InvalidPurpose),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    fn own(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["hook.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verdict(shown: &CertificateDer<'_>, anchor: &CertificateDer<'_>, name: &str) -> Result<(), rustls::Error> {
        let verifier = believing(RootCertStore::empty(), vec![anchor.clone().into_owned()]).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(shown, &[], &name, &[], now).map(|_| ())
    }

    /// The certificate that `openssl req -x509` makes.
    #[test]
    fn a_server_that_shows_a_trusted_certificate_of_an_authority_is_believed() {
        let certificate = own(|_| {});
        assert_eq!(verdict(&certificate, &certificate, "hook.example"), Ok(()));
        let unlike = |certificate: &CertificateDer<'_>, name| verdict(certificate, certificate, name).unwrap_err();
        let of_another = unlike(&certificate, "other.example");
        assert!(matches!(&of_another, rustls::Error::InvalidCertificate(_)), "{of_another}");
        let wrong = |change: fn(&mut CertificateParams)| match unlike(&own(change), "hook.example") {
            rustls::Error::InvalidCertificate(why) => why,
            other => panic!("{other}"),
        };
        assert_eq!(wrong(|p| p.not_after = rcgen::date_time_ymd(2026, 1, 1)), CertificateError::Expired);
        assert_eq!(wrong(|p| p.not_before = rcgen::date_time_ymd(2030, 1, 1)), CertificateError::NotValidYet);
        let of_client = wrong(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        assert_eq!(of_client, CertificateError::InvalidPurpose);
        let of_same_name = own(|_| {});
        verdict(&of_same_name, &certificate, "hook.example").unwrap_err();
    }
}
