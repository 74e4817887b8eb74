package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"syscall"
)

// describe says in a few words why a connection failed. Only known errors are put into words: the
// text of others may hold the local port, the time, a URL's query or what the server sent, and it
// ends in status, where it must be the same for the same cause and give nothing away.
func describe(err error) string {
	var (
		dns   *net.DNSError
		op    *net.OpError
		errno syscall.Errno
		plain tls.RecordHeaderError
		netw  net.Error
	)
	switch {
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return fmt.Sprintf("look up %q: no such host", dns.Name)
		}
		return fmt.Sprintf("look up %q: the name server gave no answer", dns.Name)
	case isAlert(err):
		return "the server ended the TLS handshake"
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS"
	case isCertificateError(err):
		return describeCertificate(err)
	case errors.As(err, &errno):
		if errors.As(err, &op) && op.Op == "dial" && op.Addr != nil {
			return fmt.Sprintf("connect to %s: %s", op.Addr, errno.Error())
		}
		return errno.Error()
	case errors.As(err, &netw) && netw.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended early"
	}
	return "not understood as HTTP"
}

func isCertificateError(err error) bool {
	var verification *tls.CertificateVerificationError
	return errors.As(err, &verification)
}

func describeCertificate(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is signed by an unknown authority"
	case errors.As(err, &host):
		return fmt.Sprintf("the server's certificate is not valid for %q", host.Host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired or is not yet valid"
	}
	return "the server's certificate is not valid"
}

// isAlert tells whether the server ended a TLS connection with an alert, one of these if there are any.
func isAlert(err error, alerts ...tls.AlertError) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	// Over TCP the alert's own type is not exported; its text is.
	return len(alerts) == 0 || slices.ContainsFunc(alerts, func(a tls.AlertError) bool { return op.Err.Error() == a.Error() })
}

// deniedByAlert tells whether a server refused a client's certificate, or asked for one in vain (RFC 8446, section 6.2):
// bad_certificate, unsupported_certificate, certificate_revoked, certificate_expired, certificate_unknown, unknown_ca,
// access_denied, certificate_required.
func deniedByAlert(err error) bool { return isAlert(err, 42, 43, 44, 45, 46, 48, 49, 116) }
