//! Whether io_uring or epoll drives the cores: the same for all of them.

use super::{BootError, core, core_count};
use crate::config::{Config, Io};
use crate::metrics::Backend;
use crate::reactor::{SetupError, Trial, try_features, try_rings};

/// Chooses io_uring or epoll, by trying io_uring out unless epoll was asked for.
///
/// # Errors
/// When io_uring was asked for and this host does not allow it.
pub(super) fn choose(config: &Config) -> Result<Backend, BootError> {
    if config.cores.io == Io::Epoll {
        tracing::info!("epoll drives the cores, as configured");
        return Ok(Backend::Epoll);
    }
    let options = core::options(config, 0, None, Backend::Ring);
    match try_rings(&options, core_count(config)) {
        Ok(()) => Ok(Backend::Ring),
        Err(error) if config.cores.io == Io::Ring => {
            let fix = error.fix();
            let fix = format!(
                "{fix}; or let epoll serve where io_uring cannot: cores.io = \"auto\" (--io auto)"
            );
            Err(BootError::os("io_uring is not available", error.cause(), &fix))
        }
        Err(why) => {
            tracing::warn!(
                "io_uring cannot be used, so epoll drives the cores: {why}. `ringway doctor` shows \
                 what io_uring needs; cores.io = \"epoll\" (--io epoll) keeps epoll without this line"
            );
            Ok(Backend::Epoll)
        }
    }
}

/// What would drive the cores of a gateway on this machine by default. If that is epoll, also why.
#[must_use]
pub fn backend_here() -> String {
    let mut config = Config::dev();
    config.cores.count = Some(1);
    let options = core::options(&config, 0, None, Backend::Ring);
    match try_rings(&options, 1) {
        Ok(()) => Backend::Ring.label().into(),
        Err(why) => format!("{} ({why})", Backend::Epoll.label()),
    }
}

/// Tries out each of io_uring's features, then a ring for every core at once.
pub(crate) fn try_io(config: &Config) -> (Vec<Trial>, Result<(), SetupError>) {
    let options = core::options(config, 0, None, Backend::Ring);
    (try_features(&options), try_rings(&options, core_count(config)))
}
