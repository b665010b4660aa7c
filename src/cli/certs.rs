//! `tidegate certs`: the certificates in use, and those that can't be used.

use clap::Args;

use super::{
    DONE, Place,
    admin::ServerOptions,
    answers::{Certificate, Certificates, RejectedCertificate},
    failure::Failure,
    show::{self, Align, Cell, plain},
};

#[derive(Debug, Args)]
pub(super) struct Certs {
    #[command(flatten)]
    server: ServerOptions,
}

impl Certs {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let answer = admin.get("/certificates")?;
        admin.print(&answer, certificates)?;
        Ok(DONE)
    }
}

fn certificates(answer: &Certificates) -> String {
    let columns = [
        ("NAMES", Align::Left),
        ("ISSUER", Align::Left),
        ("DAYS LEFT", Align::Right),
        ("NOT AFTER", Align::Left),
        ("FILE", Align::Left),
        ("APPS", Align::Left),
        ("IN USE SINCE", Align::Left),
    ];
    let row = |certificate: &Certificate| {
        vec![
            plain(certificate.names.join(", ")),
            plain(&certificate.issuer),
            days_left(certificate.days_left),
            plain(&certificate.not_after),
            plain(certificate.file.as_deref().unwrap_or("self-signed")),
            plain(certificate.apps.join(", ")),
            plain(&certificate.in_use_since),
        ]
    };
    let mut text = show::table(&columns, answer.certificates.iter().map(row).collect());
    if !answer.rejected.is_empty() {
        text.push('\n');
        text += &rejected(&answer.rejected);
    }
    text
}

fn days_left(days: i64) -> Cell {
    if days < 0 { show::state("expired") } else { plain(days.to_string()) }
}

fn rejected(rejected: &[RejectedCertificate]) -> String {
    let columns = [("REJECTED", Align::Left), ("SERVED WITH", Align::Left), ("ERROR", Align::Left)];
    let row = |rejected: &RejectedCertificate| {
        let (host, used_instead) = match &rejected.host {
            Some(host) if rejected.kept => (&**host, "the one before"),
            Some(host) => (&**host, "none"),
            None => ("[tls] certificates", ""),
        };
        vec![plain(host), plain(used_instead), plain(&rejected.error)]
    };
    show::table(&columns, rejected.iter().map(row).collect())
}
