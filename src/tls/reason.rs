//! Why a session has failed, in words for an operator.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::error::TlsError;

/// On which side the fault of a failed handshake is, as a server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing in common: versions, suites, key exchanges.
    Unsupported,
    /// The peer refuses our certificate.
    OurCertificate,
    /// The peer's certificate is missing, or refused.
    PeerCertificate,
    /// Anything else: the peer broke the protocol, or gave up.
    Protocol,
}

impl TlsError {
    /// Where the fault of a failed handshake is.
    pub(crate) fn fault(&self) -> Fault {
        use AlertDescription as Alert;
        match self {
            Self::Session(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => {
                Fault::Unsupported
            }
            Self::Session(Error::AlertReceived(
                Alert::ProtocolVersion
                | Alert::HandshakeFailure
                | Alert::InsufficientSecurity
                | Alert::NoApplicationProtocol,
            )) => Fault::Unsupported,
            Self::Session(Error::AlertReceived(_)) if self.is_about_certificates() => {
                Fault::OurCertificate
            }
            _ if self.is_about_certificates() => Fault::PeerCertificate,
            _ => Fault::Protocol,
        }
    }

    /// The failure of a session that caused this error, if one did.
    pub(crate) fn behind(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The reason, as a server's client sees it. Fixed words: nothing of what the peer sent.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Session(error) => of_session(error),
            Self::TooLong => "a TLS message is too long",
            Self::NoContent => "too many TLS records without content",
            Self::Ended => "the TLS session has ended",
        }
    }
}

fn of_session(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::NoCertificatesPresented => "no certificate",
        Error::AlertReceived(alert) => of_alert(*alert),
        // The first byte is no type of a record.
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "not TLS: the peer may speak plain HTTP"
        }
        Error::InvalidMessage(_) => "malformed TLS message",
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "the peer has neither TLS 1.2 nor 1.3",
        Error::PeerIncompatible(_) => "no parameters of TLS in common",
        Error::PeerMisbehaved(_) | Error::InappropriateMessage { .. } => "TLS protocol violation",
        Error::InappropriateHandshakeMessage { .. } => "TLS protocol violation",
        Error::DecryptError => "a TLS record cannot be decrypted",
        _ => "TLS failure",
    }
}

fn of_certificate(error: &CertificateError) -> &'static str {
    use CertificateError::*;
    match error {
        Expired | ExpiredContext { .. } => "certificate expired",
        NotValidYet | NotValidYetContext { .. } => "certificate not valid yet",
        UnknownIssuer => "unknown issuer",
        NotValidForName | NotValidForNameContext { .. } => "name mismatch",
        Revoked => "certificate revoked",
        BadEncoding => "malformed certificate",
        InvalidPurpose | InvalidPurposeContext { .. } => "the certificate is not for servers",
        BadSignature => "the certificate's signature is wrong",
        Other(_) => "the certificate cannot be used (is it an authority's own?)",
        _ => "the certificate is not valid",
    }
}

fn of_alert(alert: AlertDescription) -> &'static str {
    use AlertDescription::*;
    match alert {
        CertificateRequired => "refused by the peer: client certificate required",
        UnknownCA => "refused by the peer: unknown issuer of our certificate",
        BadCertificate => "refused by the peer: bad certificate",
        CertificateExpired => "refused by the peer: our certificate is expired",
        CertificateRevoked => "refused by the peer: our certificate is revoked",
        CertificateUnknown | UnsupportedCertificate => "refused by the peer: our certificate",
        AccessDenied => "refused by the peer: access denied",
        UnrecognisedName => "refused by the peer: unknown server name",
        HandshakeFailure => "refused by the peer: handshake failure",
        ProtocolVersion => "refused by the peer: TLS version",
        InsufficientSecurity => "refused by the peer: insufficient security",
        NoApplicationProtocol => "refused by the peer: HTTP/1.1",
        InternalError => "internal error of the peer",
        DecryptError | BadRecordMac => "the peer cannot decrypt a TLS record",
        _ => "refused by the peer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_in_the_error_of_a_transport() {
        let failed = TlsError::from(Error::InvalidCertificate(CertificateError::Expired));
        let error = io::Error::new(io::ErrorKind::InvalidData, failed);
        assert_eq!(TlsError::behind(&error).map(TlsError::reason), Some("certificate expired"));
        assert!(TlsError::behind(&io::Error::other("x")).is_none());
        assert!(TlsError::behind(&io::ErrorKind::ConnectionReset.into()).is_none());
    }

    #[test]
    fn a_fault_is_ours_the_peers_or_of_both() {
        for (error, fault) in [
            (Error::AlertReceived(AlertDescription::UnknownCA), Fault::OurCertificate),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), Fault::Unsupported),
            (Error::AlertReceived(AlertDescription::InternalError), Fault::Protocol),
            (Error::NoCertificatesPresented, Fault::PeerCertificate),
            (Error::InvalidCertificate(CertificateError::Expired), Fault::PeerCertificate),
            (
                Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
                Fault::Unsupported,
            ),
            (Error::DecryptError, Fault::Protocol),
        ] {
            assert_eq!(TlsError::from(error).fault(), fault);
        }
        assert_eq!(TlsError::TooLong.fault(), Fault::Protocol);
    }

    #[test]
    fn the_usual_failures_have_words_of_their_own() {
        for (error, words) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "unknown issuer"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "name mismatch"),
            (Error::AlertReceived(AlertDescription::CertificateRequired), "certificate required"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "plain HTTP"),
        ] {
            let reason = TlsError::from(error).reason();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
