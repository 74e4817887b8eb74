package main

import (
	"bytes"
	"encoding/base64"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/cli"
)

// lockedBuffer is what goroutines of the HTTP client write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// What a server sends that nobody asked for is on no log.
func TestUnsolicitedAnswersAreNotLogged(t *testing.T) {
	const unasked = "s3cr3t"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + unasked))
		io.Copy(io.Discard, conn) //nolint:errcheck // until the client goes
	}))
	defer srv.Close()
	defer stdlog.SetOutput(stdlog.Writer())

	var logged lockedBuffer
	stdlog.SetOutput(&logged)
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body) //nolint:errcheck // five bytes
	res.Body.Close()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(logged.String(), unasked); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the fault does not happen: net/http logs nothing")
		}
	}
	var later lockedBuffer
	stdlog.SetOutput(&later)
	o := agent(t, nil, "inspect", srv.URL)
	time.Sleep(200 * time.Millisecond)
	if got := later.String() + o.errOut + o.out; strings.Contains(got, unasked) {
		t.Errorf("logged or printed %q", got)
	}
}

// Nor is what a server answers, or what it was given to be convinced.
func TestFailuresGiveNothingAway(t *testing.T) {
	secret := write(t, "secret", []byte("s3cr3t-password"))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		echo := r.URL.RawQuery + r.Header.Get("Authorization")
		if !strings.Contains(echo, "s3cr3t-query") || !strings.Contains(echo, "Basic ") {
			t.Errorf("the server got %q", echo)
		}
		w.Header().Set("Location", r.URL.Path+"?"+echo)
		switch r.URL.Path {
		case "/redirect":
			w.WriteHeader(http.StatusFound)
		case "/denied":
			http.Error(w, echo, http.StatusForbidden)
		default:
			w.Write([]byte(echo)) // no archive
		}
	}))
	defer srv.Close()
	for _, path := range []string{"/redirect", "/denied", "/page"} {
		for _, command := range []string{"inspect", "import"} {
			o := agent(t, nil, command, "-o", "json", "--username", "nodes", "--password-file", secret,
				srv.URL+path+"?sig=s3cr3t-query#s3cr3t-fragment")
			basic := base64.StdEncoding.EncodeToString([]byte("nodes:s3cr3t-password"))
			if got := o.out + o.errOut; o.code != cli.ExitFailed || strings.Contains(got, "s3cr3t") || strings.Contains(got, basic) {
				t.Errorf("%s %s: exit code %d, printed %q", command, path, o.code, got)
			}
		}
	}
}
