package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
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

// response is an answer whose body is watched: a read that brings nothing for the idle timeout ends.
type response struct {
	*http.Response
	n     int64 // bytes of the body that may be used
	watch *watch
	pace  *pace
	came  int64         // bytes of the body so far,
	took  time.Duration // and how long they were waited for
}

// get sends one request. It returns answers with the status 200, 206 and 416, and otherwise a
// temporaryError, one of the package's errors, or ctx's own.
func (b *httpBlob) get(ctx context.Context, r byteRange) (*response, error) {
	header := http.Header{}
	if r.n != wholeBlob {
		header.Set("Range", r.String())
		if b.validator.value != "" {
			header.Set("If-Range", b.validator.value)
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
	watched, w := newWatch(ctx, b.opts.IdleTimeout)
	req, err := http.NewRequestWithContext(watched, http.MethodGet, b.url.String(), http.NoBody)
	if err != nil {
		w.end()
		return nil, fmt.Errorf("the URL cannot be requested: %w", ErrInvalid)
	}
	req.Header = header
	req.Header.Set("User-Agent", userAgent)
	start := time.Now()
	w.start()
	res, err := b.client.Do(req) //nolint:bodyclose // response.Close does
	w.stop()
	if err != nil {
		err = requestError(ctx, w, err)
		w.end()
		return nil, err
	}
	b.pace.began(time.Since(start))
	return &response{Response: res, watch: w, pace: &b.pace}, nil
}

// requestError gives the error of a request without an answer its meaning.
func requestError(ctx context.Context, w *watch, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err() //nolint:wrapcheck // the caller's own
	case w.expired():
		return &temporaryError{text: w.text()}
	case errors.Is(err, errRedirect), errors.Is(err, ErrInvalid):
		// net/http puts the URL around it, query included.
		return innermost(err)
	case deniedByAlert(err):
		return fmt.Errorf("the server did not accept the client's certificate, or the lack of one: %w", ErrDenied)
	case isCertificateError(err), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s: %w", describe(err), ErrUnavailable)
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
	text := fmt.Sprintf("the server answered %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	text = strings.TrimSpace(text)
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
	r.watch.start()
	n, err := r.Body.Read(p)
	r.watch.stop()
	r.came += int64(n)
	r.took += time.Since(start)
	return n, err
}

// Close also ends the request; a body that was read to its end leaves the connection for the next.
func (r *response) Close() error {
	err := r.Body.Close()
	r.watch.end()
	r.pace.came(r.came, r.took)
	return err
}

// brokenText says why reading the body stopped early.
func (r *response) brokenText(err error) string {
	if r.watch.expired() {
		return r.watch.text()
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return describe(err)
}

var errIdle = errors.New("idle timeout")

// watch ends a request while it waits for the server longer than allowed. The clock runs only while
// somebody waits: a reader that takes its time is not the server's fault.
type watch struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timeout time.Duration
	timer   *time.Timer
}

// newWatch returns the context for the request.
func newWatch(ctx context.Context, timeout time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{ctx: ctx, cancel: cancel, timeout: timeout}
	w.timer = time.AfterFunc(timeout, func() { cancel(errIdle) })
	w.timer.Stop()
	return ctx, w
}

func (w *watch) start() { w.timer.Reset(w.timeout) }
func (w *watch) stop()  { w.timer.Stop() }

// end releases the request; nothing can be read from it any more.
func (w *watch) end() {
	w.timer.Stop()
	w.cancel(context.Canceled)
}

func (w *watch) expired() bool { return errors.Is(context.Cause(w.ctx), errIdle) }
func (w *watch) text() string  { return fmt.Sprintf("the server sent nothing for %s", w.timeout) }

// validator is what binds later requests to the bytes that the first one saw.
type validator struct {
	header string // ETag or Last-Modified
	value  string
}

func (v validator) String() string { return v.value }

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

// contentRange is "bytes first-last/total" (RFC 9110, section 14.4); total is -1 if unknown.
type contentRange struct {
	byteRange
	total int64
}

var errContentRange = errors.New("malformed Content-Range")

func parseContentRange(value string) (contentRange, error) {
	rest, ok := strings.CutPrefix(value, "bytes ")
	span, totalText, ok2 := strings.Cut(rest, "/")
	firstText, lastText, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return contentRange{}, errContentRange
	}
	first, err1 := strconv.ParseUint(firstText, 10, 62)
	last, err2 := strconv.ParseUint(lastText, 10, 62)
	if err1 != nil || err2 != nil || last < first {
		return contentRange{}, errContentRange
	}
	total := int64(-1)
	if totalText != "*" {
		t, err := strconv.ParseUint(totalText, 10, 62)
		if err != nil || last >= t {
			return contentRange{}, errContentRange
		}
		total = int64(t)
	}
	return contentRange{byteRange{int64(first), int64(last - first + 1)}, total}, nil
}
