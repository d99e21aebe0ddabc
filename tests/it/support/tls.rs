//! Servers that speak TLS, with authorities, certificates and keys that each test creates.

use std::path::Path;
use std::{fs, io};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use redguard::Tls;
use tempfile::TempDir;

use crate::support::servers::{Server, free_port};

/// An authority that signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, as PEM texts.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("no names are good names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Authority {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the client settings that trust certificates of this authority.
    pub(crate) fn trusted(&self) -> Tls {
        Tls::new().ca(self.pem())
    }

    /// Returns a certificate for hosts, which a client may present too.
    pub(crate) fn signs(&self, hosts: &[&str]) -> Identity {
        let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        Identity {
            certificate: params.signed_by(&key, &self.issuer).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A server with a TLS port beside the plain port, through which tests bypass the library.
pub(crate) struct TlsServer {
    pub(crate) server: Server,
    pub(crate) tls: TlsPort,
}

/// The TLS port, and the files that the server needs for it.
pub(crate) struct TlsPort {
    port: u16,
    _files: TempDir,
}

/// Whether a server asks its clients for a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    No,
    Yes,
}

impl TlsServer {
    /// Starts a server that presents `identity`, and trusts the clients of `authority` if it asks
    /// for certificates.
    pub(crate) fn start(
        identity: &Identity,
        authority: &Authority,
        ask: Ask,
        more: &[(&str, &str)],
    ) -> TlsServer {
        let files = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = files.path().join(name);
            fs::write(&path, text).expect("a file");
            as_text(&path)
        };
        let certificate = file("server.crt", &identity.certificate);
        let key = file("server.key", &identity.key);
        let ca = file("ca.crt", authority.pem());
        let ask = match ask {
            Ask::No => "no",
            Ask::Yes => "yes",
        };
        // Another process may bind the port between our check and the server's bind.
        for _ in 0..5 {
            let port = free_port().expect("a free port");
            let mut options = Server::options()
                .arg("--tls-port", &port.to_string())
                .arg("--tls-cert-file", &certificate)
                .arg("--tls-key-file", &key)
                .arg("--tls-ca-cert-file", &ca)
                .arg("--tls-auth-clients", ask);
            for (name, value) in more {
                options = options.arg(name, value);
            }
            match options.start() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => panic!("{error}"),
                Ok(server) => {
                    let tls = TlsPort {
                        port,
                        _files: files,
                    };
                    return TlsServer { server, tls };
                }
            }
        }
        panic!("no free port");
    }

    /// Returns the TLS address.
    pub(crate) fn addr(&self) -> String {
        self.tls.addr()
    }
}

impl TlsPort {
    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

fn as_text(path: &Path) -> String {
    path.to_str().expect("a path in ASCII").to_owned()
}
