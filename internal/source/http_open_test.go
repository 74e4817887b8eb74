package source_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tarlift/tarlift/internal/source"
)

// What cannot be opened, and the error that says why.
func TestHTTPOpenErrors(t *testing.T) {
	answer := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	for name, tc := range map[string]struct {
		why      string
		handler  http.HandlerFunc
		want     error
		requests int
	}{
		"404":                {"a typing error; asking again does not help", answer(404), source.ErrNotFound, 1},
		"410":                {"gone", answer(410), source.ErrNotFound, 1},
		"401":                {"no credentials", answer(401), source.ErrDenied, 1},
		"403":                {"wrong credentials", answer(403), source.ErrDenied, 1},
		"407":                {"the proxy's credentials", answer(407), source.ErrDenied, 1},
		"405":                {"not a file", answer(405), source.ErrUnavailable, 1},
		"204":                {"nothing there", answer(204), source.ErrUnavailable, 1},
		"304":                {"nobody asked conditionally", answer(304), source.ErrUnavailable, 1},
		"500":                {"tried several times", answer(500), source.ErrUnavailable, 6},
		"always 416":         {"neither with nor without a range", answer(416), source.ErrUnavailable, 2},
		"always 206":         {"a part, whatever was asked for", answer(206), source.ErrUnavailable, 2},
		"redirect loop":      {"three are followed", redirect("/again"), source.ErrUnavailable, 4},
		"to a file":          {"not HTTP", redirect("file:///etc/passwd"), source.ErrInvalid, 1},
		"with user name":     {"credentials of somebody's choosing", redirect("http://a:b@127.0.0.1/"), source.ErrInvalid, 1},
		"without location":   {"a redirect to nowhere", answer(302), source.ErrUnavailable, 1},
		"malformed location": {"cannot be followed", redirect("http://[::1"), source.ErrUnavailable, 6},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, nil, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				tc.handler(w, r)
				return true
			})
			b, err := source.OpenHTTP(t.Context(), quick(srv.URL))
			if err == nil {
				closeBlob(t, b)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v: %s", err, tc.want, tc.why)
			}
			if n := len(srv.seen()); n != tc.requests {
				t.Errorf("%d requests, want %d: %s", n, tc.requests, tc.why)
			}
		})
	}
}

func TestHTTPNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close()
	if _, err := source.OpenHTTP(t.Context(), quick(url)); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("connection refused: %v", err)
	}
	if _, err := source.OpenHTTP(t.Context(), quick("http://archive.invalid/")); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("no such host (RFC 6761): %v", err)
	}
}

func TestHTTPOptionsRefused(t *testing.T) {
	const url = "http://127.0.0.1/a.tar"
	for name, tc := range map[string]struct {
		why  string
		opts source.HTTPOptions
	}{
		"empty":           {"nothing to get", source.HTTPOptions{}},
		"no scheme":       {"a path is no URL", source.HTTPOptions{URL: "/a.tar"}},
		"other scheme":    {"not HTTP", source.HTTPOptions{URL: "ftp://127.0.0.1/a.tar"}},
		"no host":         {"nobody to ask", source.HTTPOptions{URL: "http:///a.tar"}},
		"opaque":          {"nobody to ask", source.HTTPOptions{URL: "http:a.tar"}},
		"user":            {"secrets do not belong into specs", source.HTTPOptions{URL: "http://u:p@127.0.0.1/a.tar"}},
		"control":         {"not a URL", source.HTTPOptions{URL: "http://127.0.0.1/a\n.tar"}},
		"two credentials": {"only one header", source.HTTPOptions{URL: url, Username: "u", BearerToken: "t"}},
		"broken token":    {"would end the header", source.HTTPOptions{URL: url, BearerToken: "t\r\nX: y"}},
		"no CA in CA":     {"would trust nobody", source.HTTPOptions{URL: url, CA: []byte("x")}},
		"key missing":     {"no proof", source.HTTPOptions{URL: url, Cert: []byte("x")}},
		"cert missing":    {"no name", source.HTTPOptions{URL: url, Key: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.opts.Anywhere = true
			if _, err := source.OpenHTTP(t.Context(), tc.opts); !errors.Is(err, source.ErrInvalid) {
				t.Errorf("error %v: %s", err, tc.why)
			}
		})
	}
}

// A server's demand for credentials that are sent to it, and never to the server it redirects to.
func TestHTTPCredentials(t *testing.T) {
	data := randomBytes(200_000)
	for name, tc := range map[string]struct {
		opts source.HTTPOptions
		want string
	}{
		"basic":  {source.HTTPOptions{Username: "ship", Password: "pässword"}, "Basic c2hpcDpww6Rzc3dvcmQ="},
		"bearer": {source.HTTPOptions{BearerToken: "t0ken"}, "Bearer t0ken"},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(want string) func(int, http.ResponseWriter, *http.Request) bool {
				return func(_ int, w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("Authorization") != want {
						w.WriteHeader(http.StatusUnauthorized)
						return true
					}
					return false
				}
			}
			elsewhere := newServer(t, data, check(""))
			srv := newServer(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
				if check(tc.want)(n, w, r) {
					return true
				}
				switch r.URL.Path {
				case "/elsewhere":
					http.Redirect(w, r, elsewhere.URL+"/file", http.StatusTemporaryRedirect)
				case "/here":
					http.Redirect(w, r, "/file", http.StatusFound)
				default:
					return false
				}
				return true
			})
			if _, err := source.OpenHTTP(t.Context(), quick(srv.URL)); !errors.Is(err, source.ErrDenied) {
				t.Fatalf("without credentials: %v", err)
			}
			for _, path := range []string{"/file", "/here", "/elsewhere?sig=s3cr3t"} {
				opts := quick(srv.URL + path)
				opts.Username, opts.Password, opts.BearerToken = tc.opts.Username, tc.opts.Password, tc.opts.BearerToken
				b := openHTTP(t, opts)
				if !b.RandomAccess() {
					t.Errorf("%s: no random access", path)
				}
				wantSection(t, b, 0, -1, data)
			}
			if len(elsewhere.seen()) == 0 {
				t.Fatal("the redirect was not followed")
			}
			for _, r := range elsewhere.seen() {
				if strings.Contains(fmt.Sprint(r.Header), "s3cr3t") {
					t.Errorf("the query of the first URL went elsewhere: %v", r.Header)
				}
			}
		})
	}
}

// A presigned URL signs the method and the query; every request must be exactly that.
func TestHTTPPresigned(t *testing.T) {
	data := randomBytes(200_000)
	srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || r.URL.RawQuery != "sig=a%2Fb&x=1" || r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	b := openHTTP(t, quick(srv.URL+"/bucket/a.tar?sig=a%2Fb&x=1"))
	wantSection(t, b, 100_000, 1000, data[100_000:101_000])
	if want := srv.URL + "/bucket/a.tar"; b.String() != want {
		t.Errorf("named %q, want %q", b, want)
	}
}

// Compression on the way would make offsets in the body useless.
func TestHTTPAsksForNoCompression(t *testing.T) {
	srv := newServer(t, randomBytes(1000), nil)
	openHTTP(t, quick(srv.URL))
	if got := srv.seen()[0].Header.Get("Accept-Encoding"); got != "" {
		t.Errorf("Accept-Encoding: %s", got)
	}
}
