package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// wholeBlob as a range's length asks for everything, without a Range header.
const wholeBlob = -1

// userAgent lets an operator tell the agent's requests in a server's log.
const userAgent = "tarlift"

// byteRange is n bytes from off.
type byteRange struct{ off, n int64 }

// String is the value of a Range header (RFC 9110, section 14.2).
func (r byteRange) String() string { return fmt.Sprintf("bytes=%d-%d", r.off, r.off+r.n-1) }

// temporaryError is a failure that the next attempt may not meet.
type temporaryError struct {
	text  string
	after time.Duration // the server's wish
}

func (e *temporaryError) Error() string { return e.text }
func (e *temporaryError) Unwrap() error { return ErrUnavailable }

// response is an answer whose body is watched: a read that brings nothing for the idle timeout ends. The clock runs only
// while somebody waits: a reader that takes its time is not the server's fault.
type response struct {
	*http.Response
	n      int64 // bytes of the body that may be used
	b      *httpBlob
	cancel context.CancelCauseFunc
	idle   *time.Timer
	came   int64         // bytes of the body so far,
	took   time.Duration // and how long they were waited for
}

var errIdle = errors.New("idle timeout")

// get sends one request. It returns answers with the status 200, 206 and 416, and otherwise a
// temporaryError, one of the package's errors, or ctx's own.
func (b *httpBlob) get(ctx context.Context, r byteRange) (*response, error) {
	header := http.Header{}
	if r.n != wholeBlob {
		header.Set("Range", r.String())
		if b.bound.value != "" {
			header.Set("If-Range", b.bound.value)
		}
	}
	out, err := b.send(ctx, header)
	if err != nil {
		return nil, err
	}
	if err := statusError(out.Response); err != nil {
		out.Close() //nolint:gosec // only read from
		return nil, err
	}
	out.n = r.n
	return out, nil
}

// send sends one request and returns whatever answer there is.
func (b *httpBlob) send(ctx context.Context, header http.Header) (*response, error) {
	watched, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(watched, http.MethodGet, b.url.String(), http.NoBody)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("the URL cannot be requested: %w", ErrInvalid)
	}
	req.Header = header
	req.Header.Set("User-Agent", userAgent)
	start := time.Now()
	idle := time.AfterFunc(b.opts.IdleTimeout, func() { cancel(errIdle) })
	res, err := b.client.Do(req) //nolint:bodyclose // response.Close does
	idle.Stop()
	if err != nil {
		err = b.requestError(ctx, context.Cause(watched), err)
		cancel(nil)
		return nil, err
	}
	b.pace.began(time.Since(start))
	return &response{Response: res, b: b, cancel: cancel, idle: idle}, nil
}

// requestError gives the error of a request without an answer its meaning.
func (b *httpBlob) requestError(ctx context.Context, cause, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err() //nolint:wrapcheck // the caller's own
	case errors.Is(err, errRedirect), errors.Is(err, ErrInvalid):
		// net/http puts the URL around it, query included.
		return innermost(err)
	case deniedByAlert(err):
		return fmt.Errorf("the server did not accept the client's certificate, or the lack of one: %w", ErrDenied)
	case isCertificateError(err), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s: %w", describe(err), ErrUnavailable)
	}
	return b.temporary(cause, err)
}

// temporary is a failure of a connection, which its context's cause may explain.
func (b *httpBlob) temporary(cause, err error) *temporaryError {
	if errors.Is(cause, errIdle) {
		return &temporaryError{text: fmt.Sprintf("the server sent nothing for %s", b.opts.IdleTimeout)}
	}
	return &temporaryError{text: describe(err)}
}

// innermost strips the wrappers of net/http and net.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil || errors.Is(errRedirect, next) || errors.Is(ErrInvalid, next) {
			return err
		}
		err = next
	}
}

// statusError gives a status its meaning (RFC 9110, section 15). It never reads the body.
func statusError(res *http.Response) error {
	text := strings.TrimSpace(fmt.Sprintf("the server answered %d %s", res.StatusCode, http.StatusText(res.StatusCode)))
	switch code := res.StatusCode; {
	case code == http.StatusOK, code == http.StatusPartialContent, code == http.StatusRequestedRangeNotSatisfiable:
		return nil
	case code == http.StatusNotFound, code == http.StatusGone:
		return fmt.Errorf("%s: %w", text, ErrNotFound)
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusProxyAuthRequired:
		return fmt.Errorf("%s: %w", text, ErrDenied)
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code == http.StatusTooEarly, code >= 500:
		return &temporaryError{text: text, after: retryAfter(res.Header, time.Now())}
	}
	return fmt.Errorf("%s: %w", text, ErrUnavailable)
}

func (r *response) Read(p []byte) (int, error) {
	start := time.Now()
	r.idle.Reset(r.b.opts.IdleTimeout)
	n, err := r.Body.Read(p)
	r.idle.Stop()
	r.came += int64(n)
	r.took += time.Since(start)
	return n, err
}

// Close also ends the request; a body that was read to its end leaves the connection for the next.
func (r *response) Close() error {
	err := r.Body.Close()
	r.idle.Stop()
	r.cancel(nil)
	r.b.pace.came(r.came, r.took)
	return err
}

// validator is what binds later requests to the bytes that the first one saw.
type validator struct {
	header string // ETag or Last-Modified
	value  string
}

// validatorOf takes a strong ETag, else Last-Modified. A weak ETag is of no use for ranges. A date is
// used even when the server's clock shows the same second (RFC 9110, section 8.8.2.2 would not): Go's
// file server sends nothing better. At worst a blob's digest then tells of the mixture.
func validatorOf(h http.Header) validator {
	if etag := h.Get("ETag"); len(etag) >= 2 && etag[0] == '"' && etag[len(etag)-1] == '"' {
		return validator{"ETag", etag}
	}
	if date := h.Get("Last-Modified"); date != "" {
		if _, err := http.ParseTime(date); err == nil {
			return validator{"Last-Modified", date}
		}
	}
	return validator{}
}

// same tells whether a partial answer belongs to the same bytes. It may not: there are servers that ignore
// If-Range. An ETag must be there (RFC 9110, section 15.3.7); a date need not, since a server that has
// compared If-Range itself may leave it out.
func (v validator) same(h http.Header) bool {
	got := h.Get(v.header)
	return got == v.value || got == "" && v.header == "Last-Modified"
}

// contentRange is a Content-Range (RFC 9110, section 14.4); total is -1 if unknown.
type contentRange struct {
	byteRange
	total int64
}

// contentRangeForm has no number that int64 has not.
var contentRangeForm = regexp.MustCompile(`^bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$`)

func parseContentRange(value string) (contentRange, bool) {
	m := contentRangeForm.FindStringSubmatch(value)
	if m == nil {
		return contentRange{}, false
	}
	var n [3]int64
	for i := range n {
		n[i], _ = strconv.ParseInt(m[i+1], 10, 64) // 0 for *
	}
	first, last, total := n[0], n[1], n[2]
	if m[3] == "*" {
		total = -1
	}
	return contentRange{byteRange{first, last - first + 1}, total}, first <= last && (total < 0 || last < total)
}

// describe says in a few words why a connection failed. Only known errors are put into words: the
// text of others may hold the local port, the time, a URL's query or what the server sent, and it
// ends in status, where it must be the same for the same cause and give nothing away.
func describe(err error) string {
	var (
		dns   *net.DNSError
		op    *net.OpError
		errno syscall.Errno
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
	case errors.As(err, new(tls.RecordHeaderError)), errors.Is(err, http.ErrSchemeMismatch):
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
	return errors.As(err, new(*tls.CertificateVerificationError))
}

func describeCertificate(err error) string {
	var (
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)):
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
