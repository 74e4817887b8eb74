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

// isAlert tells whether the server ended a TLS connection with an alert.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// certificateAlerts are the alerts with which a server refuses a client's certificate, or asks for
// one in vain (RFC 8446, section 6.2).
var certificateAlerts = []tls.AlertError{
	42,  // bad_certificate
	43,  // unsupported_certificate
	44,  // certificate_revoked
	45,  // certificate_expired
	46,  // certificate_unknown
	48,  // unknown_ca
	49,  // access_denied
	116, // certificate_required
}

func deniedByAlert(err error) bool {
	var op *net.OpError
	if !isAlert(err) || !errors.As(err, &op) {
		return false
	}
	// Over TCP the alert's own type is not exported; its text is.
	return slices.ContainsFunc(certificateAlerts, func(a tls.AlertError) bool { return op.Err.Error() == a.Error() })
}
