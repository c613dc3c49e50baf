//! `ringway log-level`: what a running gateway logs, changed for a while.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use clap::Args;
use ringway_stdio::Trouble;

use super::port::Port;
use super::{Admin, a_while, blocking};

/// `ringway log-level`.
#[derive(Debug, Args)]
pub struct LogLevel {
    #[command(flatten)]
    admin: Admin,
    /// error, warn, info, debug or trace; or parts of the program with a level each, such as
    /// ringway::remote=debug. Without it: what is logged now.
    filter: Option<String>,
    /// For how long; then everything is logged as configured again.
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = a_while)]
    time: Duration,
}

/// Runs `ringway log-level`.
///
/// # Errors
/// When the admin port does not answer, or refuses.
pub fn log_level(arguments: &LogLevel) -> Result<(), Trouble> {
    let port = Port::new(&arguments.admin.admin);
    let text = blocking(async {
        match &arguments.filter {
            None => shown(&port).await,
            Some(filter) => change(&port, filter, arguments.time).await,
        }
    })??;
    ringway_stdio::print(&text).map_err(ringway_cli::unprinted)
}

async fn shown(port: &Port) -> Result<String, Trouble> {
    let now = port.json("/log-level").await?;
    Ok(match (now["filter"].as_str(), now["secondsLeft"].as_f64()) {
        (Some(filter), Some(left)) => format!("{filter}, for {left:.0} s more\n"),
        _ => "as configured\n".into(),
    })
}

async fn change(port: &Port, filter: &str, time: Duration) -> Result<String, Trouble> {
    // This tells apart a gateway that refuses and another server.
    port.json("/info").await?;
    let seconds = time.as_secs().to_string();
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("filter", filter).append_pair("for", &seconds);
    let (status, said) = port.call(Method::POST, &format!("/log-level?{}", query.finish())).await?;
    match status {
        StatusCode::OK => Ok(format!("{} logs {filter} for {seconds} s\n", port.address())),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(Trouble::new(
            format!("{} changed nothing", port.address()),
            "it is an older ringway, which cannot change what it logs",
            "set log.level and start it anew",
        )),
        // The answer says what is allowed, or from where.
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => Err(Trouble::new(
            format!("{} changed nothing", port.address()),
            format!("that is refused ({status})"),
            said.trim(),
        )),
        // This may be a client port, which has an `/info` too.
        _ => Err(port.is_none(&format!("POST /log-level is answered with {status}"))),
    }
}
