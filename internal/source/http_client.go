package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

const (
	// maxRedirects bounds redirects in a row: stores that answer with a presigned URL use one or two.
	maxRedirects = 3
	// maxResponseHeader bounds a response's headers in bytes: ten times what servers send.
	maxResponseHeader = 64 << 10
	// idleConnTimeout is how long an unused connection is kept for the next range.
	idleConnTimeout = 30 * time.Second
	// maxIdleConns is how many unused connections are kept: one for each section that an importer reads
	// at a time, and some to spare. net/http keeps two, and each of the others would be made anew for each
	// blob, with one round trip, three with TLS, and a congestion window that begins anew.
	maxIdleConns = 16
)

// parseURL accepts absolute http and https URLs without user information. Its errors never show the
// URL, which may be a secret by itself (presigned).
func (o HTTPOptions) parseURL() (*url.URL, error) {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the URL cannot be parsed: %w", ErrInvalid)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("the URL's scheme is %q, not http or https: %w", u.Scheme, ErrInvalid)
	case u.Hostname() == "":
		return nil, fmt.Errorf("the URL names no host: %w", ErrInvalid)
	case u.User != nil:
		return nil, fmt.Errorf("the URL contains a user name or password; give these as credentials: %w", ErrInvalid)
	}
	if err := o.checkHost(u); err != nil {
		return nil, fmt.Errorf("the URL's host: %w", err)
	}
	return u, nil
}

// redact gives the parts of a URL that are no secret.
func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// authorizer sends credentials to the server that the URL names and to no other, wherever redirects
// lead: neither a header nor a client certificate.
type authorizer struct {
	origin  string // scheme://host:port
	header  string // Authorization, or empty
	own     *http.Transport
	foreign *http.Transport // the same without client certificate
}

func newAuthorizer(u *url.URL, opts HTTPOptions) (*authorizer, error) {
	a := &authorizer{origin: originOf(u)}
	switch basic := opts.Username != "" || opts.Password != ""; {
	case basic && opts.BearerToken != "":
		return nil, fmt.Errorf("both a password and a bearer token are given: %w", ErrInvalid)
	case basic:
		a.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(opts.Username+":"+opts.Password))
	case opts.BearerToken != "":
		a.header = "Bearer " + opts.BearerToken
	}
	if strings.ContainsAny(a.header, "\r\n\x00") {
		return nil, fmt.Errorf("the bearer token contains a line break: %w", ErrInvalid)
	}
	config, err := tlsConfig(opts)
	if err != nil {
		return nil, err
	}
	a.own = newTransport(config, opts)
	a.foreign = a.own
	if len(config.Certificates) > 0 {
		anonymous := config.Clone()
		anonymous.Certificates = nil
		a.foreign = newTransport(anonymous, opts)
	}
	return a, nil
}

func (a *authorizer) RoundTrip(req *http.Request) (*http.Response, error) {
	if originOf(req.URL) != a.origin {
		return a.foreign.RoundTrip(req) //nolint:wrapcheck // adds nothing
	}
	if a.header != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", a.header)
	}
	return a.own.RoundTrip(req) //nolint:wrapcheck // adds nothing
}

// originOf is the origin of RFC 6454, section 4: two URLs of one origin are one server.
func originOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// newTransport speaks HTTP/1.1 only: each range then has its own connection and flow control, and one
// that breaks or is given up takes no other with it. It never asks for compression, so that offsets in
// the body are offsets in the archive. There is no limit of connections: a section that nobody reads from
// holds one, and must not keep others from going on.
func newTransport(config *tls.Config, opts HTTPOptions) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  opts.checkedProxy(),
		DialContext:            opts.newDialer().DialContext,
		TLSClientConfig:        config,
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConnTimeout,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
}

func tlsConfig(opts HTTPOptions) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(opts.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(opts.CA) {
			return nil, fmt.Errorf("the CA holds no PEM certificate: %w", ErrInvalid)
		}
	}
	if len(opts.Cert) > 0 || len(opts.Key) > 0 {
		pair, err := tls.X509KeyPair(opts.Cert, opts.Key)
		if err != nil {
			// The reason is left out: it could quote the key.
			return nil, fmt.Errorf("client certificate and key are not a PEM pair that belongs together: %w", ErrInvalid)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// errRedirect marks redirects that are not followed.
var errRedirect = errors.New("redirect refused")

// checkRedirect bounds redirects and keeps them from giving away what the first URL protected.
func (o HTTPOptions) checkRedirect(req *http.Request, via []*http.Request) error {
	// net/http puts the former URL there, query included: the secret of a presigned one.
	req.Header.Del("Referer")
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w after %d of them: %w", errRedirect, maxRedirects, ErrUnavailable)
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return fmt.Errorf("%w: it leads to another scheme than http and https: %w", errRedirect, ErrInvalid)
	case req.URL.Scheme == "http" && via[0].URL.Scheme == "https":
		return fmt.Errorf("%w: it leads from https to http: %w", errRedirect, ErrInvalid)
	case req.URL.User != nil:
		return fmt.Errorf("%w: it contains a user name: %w", errRedirect, ErrInvalid)
	}
	if err := o.checkHost(req.URL); err != nil {
		return fmt.Errorf("%w: %w", errRedirect, err)
	}
	return nil
}

// dialTimeout bounds one TCP connect. A server in a reachable network answers within a round trip;
// ten seconds allow for three lost SYNs (1 + 2 + 4 s, RFC 6298).
const dialTimeout = 10 * time.Second

// testHooks are what tests put in the place of the machine's own.
type testHooks struct {
	resolver *net.Resolver
	// dialing is told each address that is about to be connected to.
	dialing func(netip.AddrPort)
	// leastTime is instead of the constant, and roundTripBytes of what is measured, unless they are 0.
	leastTime      time.Duration
	roundTripBytes int64
}

// newDialer gives a dialer that looks at the address it is about to connect to, after the look-up of
// the name: a check of the name before it could be answered differently the second time.
func (o HTTPOptions) newDialer() *net.Dialer {
	return &net.Dialer{
		Timeout:  dialTimeout,
		Resolver: o.hooks.resolver,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %q: %w", address, ErrInvalid)
			}
			if err := o.checkAddr(ap.Addr()); err != nil {
				return err
			}
			if o.hooks.dialing != nil {
				o.hooks.dialing(ap)
			}
			return nil
		},
	}
}

// checkedProxy gives the proxy of a request, if there is one. The proxy's own address is checked when
// it is dialled. A host that is not ASCII would reach the proxy in another form than the one that
// checkHost has seen: ①②⑦.⓪.⓪.① as 127.0.0.1.
func (o HTTPOptions) checkedProxy() func(*http.Request) (*url.URL, error) {
	if o.Proxy == nil || o.Anywhere {
		return o.Proxy
	}
	return func(req *http.Request) (*url.URL, error) {
		proxy, err := o.Proxy(req)
		if proxy != nil && strings.ContainsFunc(req.URL.Hostname(), func(c rune) bool { return c > 0x7f }) {
			return nil, fmt.Errorf("the URL's host must be in its ASCII form (xn--…) to be asked of a proxy: %w", ErrInvalid)
		}
		return proxy, err
	}
}
