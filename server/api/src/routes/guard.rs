//! Who may ask an open server: only this machine.

use axum::extract::Request;
use axum::http::{StatusCode, header};

use crate::problem::Problem;

/// Refuses requests whose `Host` is not this machine, so that a web page elsewhere cannot reach an open loopback server
/// under a name of its own (DNS rebinding), and requests that a browser sends on behalf of another origin.
pub(super) fn check_loopback(request: &Request) -> Result<(), Problem> {
    let header_text = |name: header::HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or(""));
    let host = header_text(header::HOST).or_else(|| request.uri().host()).unwrap_or("");
    if !is_loopback_authority(host) {
        let detail =
            format!("host `{host}` is not this machine; without credentials the server answers only localhost");
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "foreign_host", detail));
    }
    if let Some(origin) = header_text(header::ORIGIN) {
        let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
        if !is_loopback_authority(authority) {
            let detail = format!("origin `{origin}` is not this machine");
            return Err(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", detail));
        }
    }
    Ok(())
}

/// Whether `host[:port]` names the loopback interface.
pub fn is_loopback_authority(authority: &str) -> bool {
    let host = if let Some(rest) = authority.strip_prefix('[') {
        rest.split(']').next().unwrap_or("")
    } else {
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    };
    let is_loopback_address = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback_address || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::is_loopback_authority;

    #[test]
    fn only_loopback_names_pass() {
        for host in ["localhost", "LOCALHOST:7878", "127.0.0.1", "127.8.9.1:80", "[::1]:7878", "[::1]"] {
            assert!(is_loopback_authority(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com", "127.0.0.1.example.com:80", "10.0.0.1", "[::2]:1"] {
            assert!(!is_loopback_authority(host), "{host}");
        }
    }
}
