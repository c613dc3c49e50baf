//! A certificate of its own for the shapes with TLS.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Names it is good for.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// The files of one certificate, PEM.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// The certificate; it signs itself, so a client takes it as its authority too.
    pub(super) cert: PathBuf,
    /// Its private key.
    pub(super) key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub(super) pair: PathBuf,
}

impl Keys {
    /// Makes a pair and writes it into `dir`.
    pub(super) fn make(dir: &Path) -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned))
            .map_err(io::Error::other)?;
        let keys = Self {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            pair: dir.join("pair.pem"),
        };
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(&keys.cert, &cert)?;
        fs::write(&keys.key, &key)?;
        fs::write(&keys.pair, cert + &key)?;
        Ok(keys)
    }
}
