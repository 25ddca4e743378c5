//! The cluster's keys and certificates, made at the first start and kept.
//!
//! Each file is made from those before it and only where it is missing, in an order in which a start that was killed at
//! any instant is completed by the next one: a key is on the disk before the certificate that speaks of it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::base::clock::Clock;
use crate::base::file::{make_private_dir, write_atomically};

/// How long the CA lives.
const AUTHORITY_DAYS: i64 = 3650;
/// How long the other certificates live.
const LEAF_DAYS: i64 = 365;
/// A certificate is renewed when it has this long left.
const RENEW_DAYS: i64 = 120;
/// Certificates are valid from this long ago, for machines whose clock is behind.
const BACKDATE_DAYS: i64 = 2;

/// The name of the certificate with which other servers of the API are asked.
pub const FRONT_PROXY: &str = "front-proxy-client";

/// No clock that is right says less (2026-01-01): what is made under a wrong one must hold when the clock has been set.
const EARLIEST_NOW: i64 = 1_767_225_600;

/// Where the keys and certificates are, all PEM.
#[derive(Clone, Debug)]
pub struct Pki {
    pub ca: Vec<u8>,
    /// The CA's key, with which certificates of nodes are signed.
    pub ca_key: Vec<u8>,
    pub server: Identity,
    /// What `server` carries.
    pub names: Names,
    pub admin: Identity,
    /// The authority of `front_proxy`, which is believed nowhere in this server.
    pub front_proxy_ca: Vec<u8>,
    /// As whom other servers of the API are asked.
    pub front_proxy: Identity,
    /// PKCS#8 DER of the key that signs service-account tokens.
    pub token_key: Vec<u8>,
    /// The full join token: `K10<hash of the CA>::server:<secret>`.
    pub join_token: String,
}

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// Names and addresses that the server's certificate must carry.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

struct Store<'a> {
    tls: PathBuf,
    clock: &'a Clock,
}

// === impl Pki ===

impl Pki {
    /// Loads what is there under `<directory>/tls`, and makes what is missing, too old, or does not carry `names`.
    pub fn load(directory: &Path, names: &Names, token: Option<&str>, clock: &Clock) -> io::Result<Self> {
        let store = Store { tls: directory.join("tls"), clock };
        make_private_dir(&store.tls)?;
        let (ca, issuer) = store.ca("ca", "amphipod-ca")?;
        let (front_proxy_ca, front_proxy_issuer) = store.ca("requestheader-ca", "amphipod-requestheader-ca")?;
        let server = store.leaf("server", &ca, &issuer, &["amphipod-server"], names)?;
        let admin = store.leaf("admin", &ca, &issuer, &["system:admin", "system:masters"], &Names::default())?;
        let proxy = [FRONT_PROXY];
        let front_proxy = store.leaf(FRONT_PROXY, &front_proxy_ca, &front_proxy_issuer, &proxy, &Names::default())?;
        let token_key = pem_to_der(&store.key("service-account")?)?;
        let join_token = store.join_token(directory, &ca, token)?;
        let ca_key = store.key("ca")?;
        Ok(Self { ca, ca_key, server, names: names.clone(), admin, front_proxy_ca, front_proxy, token_key, join_token })
    }

    /// A kubeconfig for the administrator.
    pub fn kubeconfig(&self, server: &str) -> String {
        let b64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: default\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {}\ncontexts:\n- name: default\n  context:\n    cluster: default\n    user: default\n\
             current-context: default\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    \
             client-key-data: {}\n",
            b64(&self.ca),
            b64(&self.admin.chain),
            b64(&self.admin.key)
        )
    }
}

// === impl Store ===

impl Store<'_> {
    /// The PEM of a P-256 key, made where there is none.
    fn key(&self, name: &str) -> io::Result<Vec<u8>> {
        let path = self.tls.join(format!("{name}.key"));
        match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pem = new_key()?;
                write_atomically(&path, &pem, 0o600)?;
                Ok(pem)
            }
            read => read,
        }
    }

    fn key_pair(&self, name: &str) -> io::Result<(Vec<u8>, KeyPair)> {
        let pem = self.key(name)?;
        let pair = KeyPair::from_pem(&String::from_utf8_lossy(&pem)).map_err(other)?;
        Ok((pem, pair))
    }

    fn ca(&self, name: &str, common_name: &str) -> io::Result<(Vec<u8>, Issuer<'static, KeyPair>)> {
        let (_, key) = self.key_pair(name)?;
        let path = self.tls.join(format!("{name}.crt"));
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut params =
                    self.params(&format!("{common_name}@{}", self.clock.now().as_second()), &[], AUTHORITY_DAYS)?;
                // There is never another one, so it holds whatever time a machine may believe in.
                params.not_before = time::OffsetDateTime::UNIX_EPOCH;
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages =
                    vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
                let pem = params.self_signed(&key).map_err(other)?.pem().into_bytes();
                write_atomically(&path, &pem, 0o644)?;
                pem
            }
            Err(e) => return Err(e),
        };
        let issuer = Issuer::from_ca_cert_pem(&String::from_utf8_lossy(&pem), key).map_err(other)?;
        Ok((pem, issuer))
    }

    /// A certificate for `subject` (common name, then organisations), made anew when it does not fit any more.
    fn leaf(
        &self,
        name: &str,
        ca: &[u8],
        issuer: &Issuer<'static, KeyPair>,
        subject: &[&str],
        names: &Names,
    ) -> io::Result<Identity> {
        let (key_pem, key) = self.key_pair(name)?;
        let path = self.tls.join(format!("{name}.crt"));
        if let Ok(chain) = std::fs::read(&path)
            && self.fits(&chain, ca, names)
        {
            return Ok(Identity { chain, key: key_pem });
        }
        let mut params = self.params(subject[0], &subject[1..], LEAF_DAYS)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        match names.dns.is_empty() && names.addresses.is_empty() {
            true => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            false => serve_as(&mut params, names)?,
        }
        let chain = params.signed_by(&key, issuer).map_err(other)?.pem().into_bytes();
        write_atomically(&path, &chain, 0o644)?;
        Ok(Identity { chain, key: key_pem })
    }

    fn params(&self, common_name: &str, organisations: &[&str], days: i64) -> io::Result<CertificateParams> {
        params(common_name, organisations, days, self.clock)
    }

    /// Whether a certificate is of this CA, long enough in force, and carries the names.
    fn fits(&self, chain: &[u8], ca: &[u8], names: &Names) -> bool {
        use x509_parser::prelude::*;
        let (Ok((_, pem)), Ok((_, ca_pem))) = (parse_x509_pem(chain), parse_x509_pem(ca)) else { return false };
        let (Ok(certificate), Ok(ca)) = (pem.parse_x509(), ca_pem.parse_x509()) else { return false };
        let left = certificate.validity().not_after.timestamp() - self.clock.now().as_second();
        let issued = certificate.issuer().as_raw() == ca.subject().as_raw()
            && certificate.verify_signature(Some(ca.public_key())).is_ok();
        let begun = certificate.validity().not_before.timestamp() <= self.clock.now().as_second();
        if !issued || !begun || left < RENEW_DAYS * 86400 {
            return false;
        }
        let carried = carried(&certificate);
        let wanted = names.dns.iter().cloned().chain(names.addresses.iter().map(ToString::to_string));
        wanted.into_iter().all(|n| carried.contains(&n))
    }

    fn join_token(&self, directory: &Path, ca: &[u8], given: Option<&str>) -> io::Result<String> {
        let path = directory.join("token");
        let hash = super::join_token::ca_hash(ca);
        let full = |secret: &str| format!("K10{hash}::server:{secret}");
        let kept = std::fs::read_to_string(&path).ok().map(|t| t.trim().to_owned());
        let given = match given.map(|g| g.rsplit(':').next().unwrap_or(g)) {
            // The setting is older than the rotation, which must not be undone by a restart.
            Some(given) if super::join_token::is_rotated_away(directory, given) => {
                tracing::warn!("--token: this token was rotated away; the new one counts, in {}", path.display());
                None
            }
            given => given,
        };
        let token = match (given, kept) {
            (Some(given), _) => full(given),
            (None, Some(kept)) if kept.contains("::") => return Ok(kept),
            (None, _) => {
                let mut bytes = [0; 16];
                self.clock.random(&mut bytes);
                full(&hex::encode(bytes))
            }
        };
        write_atomically(&path, format!("{token}\n").as_bytes(), 0o600)?;
        Ok(token)
    }
}

/// The names and addresses in a certificate.
fn carried(certificate: &x509_parser::certificate::X509Certificate) -> BTreeSet<String> {
    use x509_parser::prelude::*;
    let mut carried = BTreeSet::new();
    if let Ok(Some(sans)) = certificate.subject_alternative_name() {
        for san in &sans.value.general_names {
            match san {
                GeneralName::DNSName(dns) => drop(carried.insert((*dns).to_owned())),
                GeneralName::IPAddress([a, b, c, d]) => {
                    carried.insert(IpAddr::from([*a, *b, *c, *d]).to_string());
                }
                GeneralName::IPAddress(bytes) => {
                    carried.extend(<[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()));
                }
                _ => {}
            }
        }
    }
    carried
}

/// Whether a certificate carries what the `new` one does, for the same key, and does not have to be renewed yet.
pub fn serves_as_well(kept: &[u8], new: &str, now: i64) -> bool {
    use x509_parser::prelude::*;
    let (Ok((_, kept)), Ok((_, new))) = (parse_x509_pem(kept), parse_x509_pem(new.as_bytes())) else { return false };
    let (Ok(kept), Ok(new)) = (kept.parse_x509(), new.parse_x509()) else { return false };
    let same = kept.public_key().raw == new.public_key().raw && kept.issuer().as_raw() == new.issuer().as_raw();
    same && carried(&kept) == carried(&new) && kept.validity().not_after.timestamp() - now > RENEW_SECONDS
}

fn params(common_name: &str, organisations: &[&str], days: i64, clock: &Clock) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(common_name, organisations);
    let now = clock.now().as_second();
    let at = |seconds: i64| time::OffsetDateTime::from_unix_timestamp(seconds).map_err(other);
    // Nothing before 1970: verifiers refuse to read it.
    params.not_before = at((now - BACKDATE_DAYS * 86400).max(0))?;
    params.not_after = at(now.max(EARLIEST_NOW) + days * 86400)?;
    Ok(params)
}

fn subject(common_name: &str, organisations: &[&str]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    for organisation in organisations {
        subject.push(DnType::OrganizationName, *organisation);
    }
    subject
}

/// What a node's certificate says, whatever its request says.
pub fn node_params(common_name: &str, organisation: &str, clock: &Clock) -> io::Result<CertificateParams> {
    let mut params = params(common_name, &[organisation], LEAF_DAYS, clock)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// What the certificate says that a node shows to its own clients: the same, and where it answers.
pub fn serving_params(
    common_name: &str,
    organisation: &str,
    names: &Names,
    clock: &Clock,
) -> io::Result<CertificateParams> {
    let mut params = node_params(common_name, organisation, clock)?;
    serve_as(&mut params, names)?;
    Ok(params)
}

/// Makes a server's certificate of it.
fn serve_as(params: &mut CertificateParams, names: &Names) -> io::Result<()> {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for dns in &names.dns {
        params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into().map_err(other)?));
    }
    params.subject_alt_names.extend(names.addresses.iter().map(|a| SanType::IpAddress(*a)));
    Ok(())
}

/// A request for a certificate, PEM: `system:node:<name>` of `system:nodes`, signed with the node's own key (PEM).
pub fn node_request(node: &str, key: &[u8]) -> io::Result<String> {
    let key = KeyPair::from_pem(&String::from_utf8_lossy(key)).map_err(other)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("system:node:{node}"), &["system:nodes"]);
    params.serialize_request(&key).and_then(|r| r.pem()).map_err(other)
}

/// A new P-256 key, PEM.
pub fn new_key() -> io::Result<Vec<u8>> {
    Ok(KeyPair::generate().map_err(other)?.serialize_pem().into_bytes())
}

/// When a certificate ends, if `chain` is one of `ca` for `common_name`.
pub fn node_certificate_end(chain: &[u8], ca: &[u8], common_name: &str) -> Option<i64> {
    use x509_parser::prelude::*;
    let (_, pem) = parse_x509_pem(chain).ok()?;
    let (_, ca_pem) = parse_x509_pem(ca).ok()?;
    let (certificate, ca) = (pem.parse_x509().ok()?, ca_pem.parse_x509().ok()?);
    let named = certificate.subject().iter_common_name().next()?.as_str().ok()? == common_name;
    let issued = certificate.verify_signature(Some(ca.public_key())).is_ok();
    (named && issued).then(|| certificate.validity().not_after.timestamp())
}

/// How many seconds before its end a certificate is renewed.
pub const RENEW_SECONDS: i64 = RENEW_DAYS * 86400;

/// How long until the next renewal must be looked at, and how long after one that failed.
const RENEWAL_CHECK: Duration = Duration::from_secs(12 * 3600);
pub const RENEWAL_RETRY: Duration = Duration::from_secs(600);
/// How often the machine's clock is looked at, and what it may drift meanwhile.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
const DRIFT: Duration = Duration::from_secs(3600);

/// Waits until certificates must be looked at: after half a day, or when the machine's clock has been set.
pub async fn renewal_due(clock: &Clock) {
    let (wall, began) = (clock.now(), tokio::time::Instant::now());
    loop {
        tokio::time::sleep(CLOCK_CHECK).await;
        let (passed, counted) = (clock.now().duration_since(wall).as_secs(), began.elapsed());
        if counted >= RENEWAL_CHECK || passed.abs_diff(counted.as_secs() as i64) > DRIFT.as_secs() {
            return;
        }
    }
}

fn pem_to_der(pem: &[u8]) -> io::Result<Vec<u8>> {
    Ok(crate::wire::tls::private_key(pem)?.secret_der().to_vec())
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &str) -> Names {
        Names { dns: vec![dns.into()], addresses: vec!["127.0.0.1".parse().unwrap()] }
    }

    #[test]
    fn the_kubeconfig_has_the_keys_that_every_client_reads() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load(dir.path(), &names("a"), None, &Clock::system()).unwrap();
        let text = pki.kubeconfig("https://a:6443");
        let parts = [
            ("certificate-authority-data", &pki.ca),
            ("client-certificate-data", &pki.admin.chain),
            ("client-key-data", &pki.admin.key),
        ];
        for (key, pem) in parts {
            let line = format!("    {key}: {}", base64::engine::general_purpose::STANDARD.encode(pem));
            assert!(text.lines().any(|l| l == line), "{key} is in {text}");
        }
        assert!(text.contains("    server: https://a:6443\n"));
    }

    #[tokio::test]
    async fn what_is_made_under_a_wrong_clock_holds_when_the_clock_is_right() {
        use x509_parser::prelude::*;
        let at = |time: &str| Clock::simulated(time.parse().unwrap(), 1);
        let right = at("2026-11-23T00:00:00Z");
        for wrong in ["1970-01-01T00:01:00Z", "2099-01-01T00:00:00Z"] {
            let dir = tempfile::tempdir().unwrap();
            let made = Pki::load(dir.path(), &names("a"), None, &at(wrong)).unwrap();
            let later = Pki::load(dir.path(), &names("a"), None, &right).unwrap();
            assert_eq!((&made.ca, &made.join_token), (&later.ca, &later.join_token), "{wrong}");
            assert_ne!(made.server.chain, later.server.chain, "made anew: it would end soon, or has not begun");
            for chain in [&later.ca, &later.server.chain, &later.admin.chain] {
                let (_, pem) = parse_x509_pem(chain).unwrap();
                let validity = pem.parse_x509().unwrap().validity().clone();
                let now = right.now().as_second();
                let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
                assert!((0..=now).contains(&from) && to > now + 300 * 86400, "{wrong}: {from} to {to}");
            }
            let again = Pki::load(dir.path(), &names("a"), None, &right).unwrap();
            assert_eq!(again.server.chain, later.server.chain);
        }
    }

    #[test]
    fn a_rotation_is_not_undone_by_the_setting_before_it() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let load = |token: Option<&str>| Pki::load(dir.path(), &names("a"), token, &clock).unwrap().join_token;
        assert!(load(Some("first")).ends_with("::server:first"));
        let rotated = super::super::join_token::rotate(dir.path(), "second", clock.now()).unwrap();
        assert_eq!(load(Some("first")), rotated);
        assert_eq!(load(None), rotated);
        assert!(load(Some("third")).ends_with("::server:third"));
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let first = Pki::load(dir.path(), &names("a"), None, &clock).unwrap();
        let again = Pki::load(dir.path(), &names("a"), None, &clock).unwrap();
        assert_eq!(
            (&first.ca, &first.server.chain, &first.join_token),
            (&again.ca, &again.server.chain, &again.join_token)
        );
        // A start that was killed between a key and its certificate.
        std::fs::remove_file(dir.path().join("tls/ca.crt")).unwrap();
        std::fs::remove_file(dir.path().join("tls/admin.crt")).unwrap();
        let healed = Pki::load(dir.path(), &names("a"), None, &clock).unwrap();
        assert_ne!(healed.ca, first.ca);
        std::fs::remove_file(dir.path().join("tls/ca.crt")).unwrap();
        std::fs::remove_file(dir.path().join("tls/ca.key")).unwrap();
        let healed = Pki::load(dir.path(), &names("a"), None, &clock).unwrap();
        assert_ne!(healed.server.chain, first.server.chain, "another CA's certificate is of no use");
        let renamed = Pki::load(dir.path(), &names("b"), None, &clock).unwrap();
        assert_ne!(renamed.server.chain, healed.server.chain, "a new name needs a new certificate");
        assert_eq!(renamed.admin.chain, healed.admin.chain);
    }
}
