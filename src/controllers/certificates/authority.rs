//! Certificates from requests, as they are: the subject, the key and the other names are what the request says, byte for byte.

use std::io;
use std::time::Duration;

use rcgen::{KeyPair, SigningKey};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::prelude::{FromDer, parse_x509_pem};
use yasna::models::{ObjectIdentifier, UTCTime};
use yasna::{DERWriter, DERWriterSeq, Tag};

use super::policy::Asked;
use crate::base::clock::Clock;

/// Certificates are valid from this long ago, for machines whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

const ECDSA_WITH_SHA256: &[u64] = &[1, 2, 840, 10045, 4, 3, 2];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];
const OTHER_NAMES: &[u64] = &[2, 5, 29, 17];

/// The cluster's authority.
pub struct Authority {
    key: KeyPair,
    /// Its subject, DER.
    name: Vec<u8>,
    key_identifier: Vec<u8>,
    /// When its own certificate ends, in seconds since 1970.
    end: i64,
}

// === impl Authority ===

impl Authority {
    /// The authority of a certificate and its P-256 key, both PEM.
    pub fn new(certificate: &[u8], key: &[u8]) -> io::Result<Self> {
        let (_, pem) = parse_x509_pem(certificate).map_err(io::Error::other)?;
        let own = pem.parse_x509().map_err(io::Error::other)?;
        let identifier = own.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            key: KeyPair::from_pem(&String::from_utf8_lossy(key)).map_err(io::Error::other)?,
            name: own.subject().as_raw().to_vec(),
            key_identifier: identifier.unwrap_or_default(),
            end: own.validity().not_after.timestamp(),
        })
    }

    /// A certificate, PEM; the error says why there is none.
    pub(super) fn sign(&self, asked: &Asked, life: Duration, clock: &Clock) -> Result<String, String> {
        let (_, request) = X509CertificationRequest::from_der(&asked.der).map_err(|error| error.to_string())?;
        let now = clock.now().as_second();
        let from = now.saturating_sub_unsigned(BACKDATE.as_secs());
        let until = now.saturating_add_unsigned(life.as_secs()).min(self.end);
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| error.to_string());
        let (from, until) = (at(from)?, at(until)?);
        let mut serial = [0; 16];
        clock.random(&mut serial);
        // A positive number, without a leading zero byte.
        serial[0] = serial[0] & 0x7f | 0x40;
        let info = &request.certification_request_info;
        let body = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
                writer.next().write_bigint_bytes(&serial, true);
                algorithm(writer.next());
                writer.next().write_der(&self.name);
                writer.next().write_sequence(|writer| {
                    time(writer.next(), from);
                    time(writer.next(), until);
                });
                writer.next().write_der(info.subject.as_raw());
                writer.next().write_der(info.subject_pki.raw);
                writer.next().write_tagged(Tag::context(3), |writer| {
                    writer.write_sequence(|writer| self.extensions(writer, asked, other_names(&request)));
                });
            });
        });
        let signature = self.key.sign(&body).map_err(|error| error.to_string())?;
        let certificate = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&body);
                algorithm(writer.next());
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Ok(pem(&certificate))
    }

    fn extensions(&self, writer: &mut DERWriterSeq<'_>, asked: &Asked, other_names: Option<(bool, &[u8])>) {
        let usages = key_usage(&asked.usages);
        if usages != [0, 0] {
            extension(writer, KEY_USAGE, true, &yasna::construct_der(|w| w.write_bitvec_bytes(&usages, 9)));
        }
        let ends: Vec<&[u64]> = asked.usages.iter().filter_map(|usage| extended(usage)).collect();
        if !ends.is_empty() {
            let ends = yasna::construct_der(|w| {
                w.write_sequence(|w| ends.iter().for_each(|end| w.next().write_oid(&oid(end))));
            });
            extension(writer, EXTENDED_KEY_USAGE, false, &ends);
        }
        // No authority.
        extension(writer, BASIC_CONSTRAINTS, true, &yasna::construct_der(|w| w.write_sequence(|_| {})));
        if !self.key_identifier.is_empty() {
            let key = yasna::construct_der(|w| {
                w.write_sequence(|w| {
                    w.next().write_tagged_implicit(Tag::context(0), |w| w.write_bytes(&self.key_identifier));
                });
            });
            extension(writer, AUTHORITY_KEY, false, &key);
        }
        if let Some((critical, names)) = other_names {
            extension(writer, OTHER_NAMES, critical, names);
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

fn oid(of: &[u64]) -> ObjectIdentifier {
    ObjectIdentifier::from_slice(of)
}

fn algorithm(writer: DERWriter<'_>) {
    writer.write_sequence(|writer| writer.next().write_oid(&oid(ECDSA_WITH_SHA256)));
}

/// As certificates write it: with two digits of the year until 2049.
fn time(writer: DERWriter<'_>, at: OffsetDateTime) {
    match (1950..2050).contains(&at.year()) {
        true => writer.write_utctime(&UTCTime::from_datetime(at)),
        false => writer.write_generalized_time(&yasna::models::GeneralizedTime::from_datetime(at)),
    }
}

fn extension(writer: &mut DERWriterSeq<'_>, of: &[u64], critical: bool, value: &[u8]) {
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&oid(of));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(value);
    });
}

/// The other names that a request asks for, as they are written there.
fn other_names<'a>(request: &'a X509CertificationRequest<'a>) -> Option<(bool, &'a [u8])> {
    request.certification_request_info.iter_attributes().find_map(|attribute| {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else { return None };
        let names =
            asked.extensions.iter().find(|e| e.oid == x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME)?;
        Some((names.critical, names.value))
    })
}

/// The bits of `KeyUsage` (RFC 5280, section 4.2.1.3), the first of them first.
fn key_usage(usages: &[String]) -> [u8; 2] {
    const BITS: [&str; 9] = [
        "digital signature",
        "content commitment",
        "key encipherment",
        "data encipherment",
        "key agreement",
        "cert sign",
        "crl sign",
        "encipher only",
        "decipher only",
    ];
    let mut bits = [0; 2];
    for usage in usages {
        let name = if usage == "signing" { BITS[0] } else { usage.as_str() };
        if let Some(bit) = BITS.iter().position(|of| *of == name) {
            bits[bit / 8] |= 0x80 >> (bit % 8);
        }
    }
    bits
}

/// The purpose that a usage is.
fn extended(usage: &str) -> Option<&'static [u64]> {
    Some(match usage {
        "any" => &[2, 5, 29, 37, 0],
        "server auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 1],
        "client auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 2],
        "code signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 3],
        "email protection" | "s/mime" => &[1, 3, 6, 1, 5, 5, 7, 3, 4],
        "ipsec end system" => &[1, 3, 6, 1, 5, 5, 7, 3, 5],
        "ipsec tunnel" => &[1, 3, 6, 1, 5, 5, 7, 3, 6],
        "ipsec user" => &[1, 3, 6, 1, 5, 5, 7, 3, 7],
        "timestamping" => &[1, 3, 6, 1, 5, 5, 7, 3, 8],
        "ocsp signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 9],
        "microsoft sgc" => &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3],
        "netscape sgc" => &[2, 16, 840, 1, 113730, 4, 1],
        _ => return None,
    })
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
    format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines.collect::<String>())
}
