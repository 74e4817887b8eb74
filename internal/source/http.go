package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// defaultIdleTimeout is how long a server may send nothing before the connection counts as broken:
// longer than an object store takes to bring back a cold object, shorter than anybody's patience.
const defaultIdleTimeout = 30 * time.Second

// HTTPOptions say where an archive is served and how to be let in. Without credentials none are sent.
type HTTPOptions struct {
	URL string // http or https, without user information

	Username, Password string // basic authentication (RFC 7617)
	BearerToken        string // or a bearer token (RFC 6750)

	// Anywhere lets requests go to every address: for a caller who reaches them by himself as well. Otherwise
	// those of loopback, link-local, multicast and metadata services are refused, unless AllowAddresses covers them.
	Anywhere       bool
	AllowAddresses []netip.Prefix
	// Proxy chooses a request's proxy, as http.ProxyFromEnvironment does; nil means none. A proxy looks names
	// up by itself: of what lies behind it only the URL's own host is checked.
	Proxy func(*http.Request) (*url.URL, error)

	CA        []byte // PEM; the only authorities that are trusted, instead of the system's
	Cert, Key []byte // PEM; the client's own certificate, for a server that asks for one

	IdleTimeout time.Duration // without a single byte; 0 means 30 s
	BackoffBase time.Duration // upper limit of the first wait; 0 means 250 ms
	BackoffMax  time.Duration // upper limit of any wait; 0 means 30 s

	hooks testHooks
}

// httpBlob is an archive on an HTTP server. It gives random access when the server honours Range and
// tells a validator that later requests can be bound to (RFC 9110, section 13.1.5).
type httpBlob struct {
	blob
	opts      HTTPOptions
	url       *url.URL
	client    *http.Client
	transport *authorizer

	bound    validator // for ranges
	pace     pace
	metadata progress  // of all ReadAt together
	whole    *response // the answer that a stream is
}

// OpenHTTP sends the first request and finds out what kind of access the server gives. The blob's
// ReadAt, and its only Section when it is a stream, end with ctx.
//
// The first request is a GET with a Range, never a HEAD: a presigned URL allows one method only.
func OpenHTTP(ctx context.Context, opts HTTPOptions) (Blob, error) {
	b, err := newHTTPBlob(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := b.open(); err != nil {
		b.Close() //nolint:gosec // the first error counts
		return nil, err
	}
	return b, nil
}

// newHTTPBlob is a blob that has sent no request yet.
func newHTTPBlob(ctx context.Context, opts HTTPOptions) (*httpBlob, error) {
	u, err := opts.parseURL()
	if err != nil {
		return nil, err
	}
	opts.IdleTimeout = cmp.Or(opts.IdleTimeout, defaultIdleTimeout)
	opts.hooks.leastTime = cmp.Or(opts.hooks.leastTime, leastTime)
	b := &httpBlob{opts: opts, url: u}
	read := func(p []byte, off int64) (int, error) { return b.readFull(p, off, nil) }
	b.ahead = readAhead{most: maxCached, size: b.window, read: read}
	b.init(ctx, redact(u), -1)
	if b.transport, err = newAuthorizer(u, opts); err != nil {
		return nil, b.errorf(err)
	}
	b.client = &http.Client{Transport: b.transport, CheckRedirect: opts.checkRedirect}
	return b, nil
}

func (b *httpBlob) Remote() bool { return true }

func (b *httpBlob) roundTripBytes() int64 {
	return cmp.Or(b.opts.hooks.roundTripBytes, b.pace.roundTripBytes())
}

func (b *httpBlob) Close() error {
	b.cancel() // with it the answer that a stream is
	b.transport.own.CloseIdleConnections()
	b.transport.foreign.CloseIdleConnections()
	return nil
}

// errorf adds the source's name. The caller's own cancellation stays what it is.
func (b *httpBlob) errorf(err error) error { return fmt.Errorf("get %s: %w", b, err) }

// open decides between random access and a stream.
func (b *httpBlob) open() error {
	res, err := b.try(byteRange{off: 0, n: firstWindow})
	if err != nil {
		return b.errorf(err)
	}
	if b.stream = b.acceptProbe(res); b.stream == "" {
		first := make([]byte, res.n)
		if _, err := b.readFull(first, 0, res); err != nil {
			return err
		}
		b.ahead.add(0, first)
		return nil
	}
	if res.StatusCode != http.StatusOK {
		// The answer to the probe is of no use; the same without a range is one representation.
		res.Close() //nolint:gosec // only read from
		if res, err = b.try(byteRange{n: wholeBlob}); err != nil {
			return b.errorf(err)
		}
		if res.StatusCode != http.StatusOK {
			res.Close() //nolint:gosec // only read from
			return b.errorf(fmt.Errorf("the server answered %d to a request without a range: %w", res.StatusCode, ErrUnavailable))
		}
	}
	b.whole, b.size, b.validator = res, res.ContentLength, versionOf(res.Header)
	return nil
}

// try sends a request that opens the source, several times if need be.
func (b *httpBlob) try(r byteRange) (*response, error) {
	wait := b.newBackoff(openAttempts)
	for {
		res, err := b.get(b.ctx, r)
		var temporary *temporaryError
		if err == nil || !errors.As(err, &temporary) {
			return res, err
		}
		if err := wait.pause(b.ctx, temporary); err != nil {
			return nil, err
		}
	}
}

func (b *httpBlob) newBackoff(attempts int) *backoff {
	return &backoff{cmp.Or(b.opts.BackoffBase, backoffBase), cmp.Or(b.opts.BackoffMax, backoffMax), attempts, 0}
}

// acceptProbe takes size and validator from the answer to the first range request. It returns why
// the answer does not promise random access, if so.
func (b *httpBlob) acceptProbe(res *response) string {
	switch res.StatusCode {
	case http.StatusOK:
		return "the server ignores Range"
	case http.StatusRequestedRangeNotSatisfiable:
		return "the server refuses the range of the first bytes"
	}
	got, ok := parseContentRange(res.Header.Get("Content-Range"))
	if !ok || got.off != 0 || got.total < 0 {
		return "the server sends no usable Content-Range"
	}
	if b.bound = validatorOf(res.Header); b.bound.value == "" {
		return "the server sends neither a strong ETag nor Last-Modified"
	}
	b.size, b.validator = got.total, versionOf(res.Header)
	res.n = min(got.n, firstWindow)
	return ""
}

func (b *httpBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	n, err := b.check(off, n)
	if err != nil {
		return nil, err
	}
	s := b.newSection(ctx, off, n)
	if b.whole != nil {
		s.body, b.whole.n = b.whole, n
		context.AfterFunc(s.ctx, b.cancel) //nolint:contextcheck // the answer ends with the blob's
	}
	return s, nil
}

// MaxValidator bounds Blob.Validator in bytes, so that it can be kept where there is little room. ETags are short: a
// checksum in quotes. Longer ones are replaced by their digest.
const MaxValidator = 128

// HTTPChanged tells whether OpenHTTP would give other bytes than those of this validator. It sends one request, for a
// single byte, with the validator as its condition. It is not a HEAD: a presigned URL allows one method only.
//
// A server that tells no validator any more says nothing of its bytes: that is no change.
func HTTPChanged(ctx context.Context, opts HTTPOptions, validator string) (bool, error) {
	b, err := newHTTPBlob(ctx, opts)
	if err != nil {
		return false, err
	}
	defer b.Close()
	header := http.Header{}
	header.Set("Range", byteRange{0, 1}.String())
	if _, err := http.ParseTime(validator); err == nil { // RFC 9110, section 13.1
		header.Set("If-Modified-Since", validator)
	} else if strings.HasSuffix(validator, `"`) {
		header.Set("If-None-Match", validator)
	}
	res, err := b.send(ctx, header)
	if err != nil {
		return false, b.errorf(err)
	}
	defer res.Close()
	if res.StatusCode != http.StatusNotModified {
		if err := statusError(res.Response); err != nil {
			return false, b.errorf(err)
		}
	}
	// Even when it was not modified: a server may say so of every older date, and the one that comes along tells.
	version := versionOf(res.Header)
	// Servers make an ETag weak and strong again (RFC 9110, section 8.8.3.2).
	return version != "" && strings.TrimPrefix(version, "W/") != strings.TrimPrefix(validator, "W/"), nil
}

// versionOf tells an answer's bytes from others as Blob.Validator does. Unlike for ranges, a weak ETag will do.
func versionOf(h http.Header) string {
	v := validatorOf(h)
	if weak := h.Get("ETag"); v.header != "ETag" && strings.HasPrefix(weak, `W/"`) && strings.HasSuffix(weak, `"`) {
		v.value = weak
	}
	printable := strings.IndexFunc(v.value, func(r rune) bool { return r < ' ' || r > '~' }) < 0
	if len(v.value) <= MaxValidator && printable {
		return v.value
	}
	sum := sha256.Sum256([]byte(v.value))
	return "sha256:" + hex.EncodeToString(sum[:])
}
