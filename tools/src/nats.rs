//! How a program of ours says who it is to NATS.

use std::io;
use std::path::PathBuf;

use async_nats::{ConnectOptions, ServerAddr};
use clap::Args;

/// Credentials for NATS; else a user and a password, or a token, may stand in the URL.
#[derive(Clone, Debug, Default, Args)]
pub struct Credentials {
    /// A file with the NKey seed for NATS.
    #[arg(long, value_name = "FILE", conflicts_with = "nats_creds_file")]
    pub nats_nkey_file: Option<PathBuf>,
    /// A file with a JWT and its NKey seed for NATS, as NATS' tools write it.
    #[arg(long, value_name = "FILE")]
    pub nats_creds_file: Option<PathBuf>,
    /// Certificates of the authorities that NATS is checked against, as PEM; without it the
    /// system's.
    #[arg(long, value_name = "FILE")]
    pub nats_ca_file: Option<PathBuf>,
    /// A certificate that NATS is shown, as PEM.
    #[arg(long, value_name = "FILE", requires = "nats_key_file")]
    pub nats_cert_file: Option<PathBuf>,
    /// Its private key, as PEM.
    #[arg(long, value_name = "FILE", requires = "nats_cert_file")]
    pub nats_key_file: Option<PathBuf>,
}

impl Credentials {
    /// Options of a connection to the first of `servers` with these credentials.
    ///
    /// # Errors
    /// A file that cannot be read, or has no seed.
    pub async fn options(&self, servers: &[ServerAddr]) -> io::Result<ConnectOptions> {
        let mut options = self.login(servers).await?;
        // The library reads the files at each connection. A missing file is reported at the start.
        let files = [&self.nats_ca_file, &self.nats_cert_file, &self.nats_key_file];
        for path in files.into_iter().flatten() {
            tokio::fs::File::open(path).await.map_err(|error| named(path, error))?;
        }
        if let Some(authorities) = &self.nats_ca_file {
            options = options.add_root_certificates(authorities.clone());
        }
        if let (Some(certificate), Some(key)) = (&self.nats_cert_file, &self.nats_key_file) {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }

    async fn login(&self, servers: &[ServerAddr]) -> io::Result<ConnectOptions> {
        if let Some(path) = &self.nats_nkey_file {
            let named = |error: io::Error| named(path, error);
            let seed = tokio::fs::read_to_string(path).await.map_err(named)?;
            let seed = seed.trim().to_owned();
            nkeys::KeyPair::from_seed(&seed)
                .map_err(|error| named(io::Error::new(io::ErrorKind::InvalidData, error)))?;
            return Ok(ConnectOptions::with_nkey(seed));
        }
        match &self.nats_creds_file {
            Some(path) => ConnectOptions::with_credentials_file(path)
                .await
                .map_err(|error| named(path, error)),
            None => Ok(servers.first().map_or_else(ConnectOptions::new, of_url)),
        }
    }
}

/// The servers of a list with commas.
///
/// # Errors
/// What is no URL of a server.
pub fn servers(urls: &str) -> io::Result<Vec<ServerAddr>> {
    urls.split(',').map(|url| url.trim().parse()).collect()
}

/// What stands before the URL's `@`, which the library does not look at: a user and a password, or
/// a token alone, as in NATS' other libraries.
fn of_url(server: &ServerAddr) -> ConnectOptions {
    match (server.username(), server.password()) {
        (Some(user), Some(password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        (Some(token), None) => ConnectOptions::with_token(token.to_owned()),
        (None, _) => ConnectOptions::new(),
    }
}

fn named(path: &std::path::Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
