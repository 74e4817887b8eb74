package integration

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
)

// webServers are what people serve archives with. start serves the file a.tar of a directory and returns the server's
// address; address may be wrapped before it is asked for path.
var webServers = []struct {
	name   string
	random bool // it honours Range
	start  func(t *testing.T, dir string) (address string)
	path   func(host string) string // with which the archive is asked for
}{
	{"nginx", true, startNginx, plainPath},
	{"Go", true, startGoServer, plainPath},
	{"presigned", true, startPresigned, presignedPath},
	{"Python", false, startPython, plainPath},
}

// An import from each of them succeeds. Where the server honours ranges, no more than a little beside the needed blobs
// comes over the wire; a stream of the same archive is far beyond that.
func TestWebServers(t *testing.T) {
	dir := t.TempDir()
	b := fivePlatforms(t, filepath.Join(dir, "a.tar"), 0)
	need := needed(b)
	for _, s := range webServers {
		t.Run(s.name, func(t *testing.T) {
			r := startRuntime(t, cluster.ContainerdOptions{})
			wire := startRelay(t, s.start(t, dir))
			src := openURL(t, wire, s.path)
			if src.RandomAccess() != s.random || (source.WhyStream(src) == "") != s.random {
				t.Fatalf("random access is %v, because %q", src.RandomAccess(), source.WhyStream(src))
			}
			got, err := r.importer(t).Import(t.Context(), src, request("1"))
			if err != nil {
				t.Fatal(err)
			}
			img, err := r.GetImage(r.ctx, app)
			if err != nil || img.Target().Digest != b.Images[0].Target.Digest {
				t.Fatalf("image %v, error %v", img, err)
			}
			if unpacked, err := img.IsUnpacked(r.ctx, "overlayfs"); err != nil || !unpacked {
				t.Errorf("unpacked %v, error %v", unpacked, err)
			}
			sent, limit := wire.sent.Load(), wireLimit(need)
			t.Logf("%s: %d bytes on the wire, %d read, %d needed, %d connections", s.name, sent, got.Bytes.Read, need, wire.accepted.Load())
			if s.random != (sent <= limit) {
				t.Errorf("%d bytes on the wire; %d are allowed with ranges", sent, limit)
			}
			if s.random && got.Bytes.Written != need {
				t.Errorf("%d bytes were written of %d that are needed", got.Bytes.Written, need)
			}
			if got.Bytes.Read > sent || sent > got.Bytes.Read+got.Bytes.Read/100+100_000 {
				t.Errorf("%d bytes on the wire, %d are reported", sent, got.Bytes.Read)
			}
		})
	}
}

// All connections are reset in mid-blob. Each goes on at its own byte: what comes over the wire twice is what was on the
// way and no more.
func TestWebServerDropsConnections(t *testing.T) {
	dir := t.TempDir()
	need := needed(fivePlatforms(t, filepath.Join(dir, "a.tar"), 0))
	for name, options := range connections {
		t.Run(name, func(t *testing.T) {
			r := startRuntime(t, cluster.ContainerdOptions{})
			wire := startRelay(t, startNginx(t, dir))
			src := openURL(t, wire, plainPath)
			wire.resetAt(need*3/4, nil)
			got, err := r.importerWith(t, options).Import(t.Context(), src, request("1"))
			if err != nil {
				t.Fatal(err)
			}
			lost := wire.reset.Load()
			if lost == 0 || lost == 1 && options.Concurrency > 1 {
				t.Fatalf("%d connections were reset", lost)
			}
			t.Logf("%d bytes on the wire, %d read, %d needed, %d of %d connections reset", wire.sent.Load(), got.Bytes.Read, need, lost, wire.accepted.Load())
			if got.Bytes.Read > wireLimit(need) || got.Bytes.Written != need {
				t.Errorf("%d bytes were read and %d written for %d", got.Bytes.Read, got.Bytes.Written, need)
			}
			if sent, limit := wire.sent.Load(), wireLimit(need)+lost*relayInFlight; sent > limit {
				t.Errorf("%d bytes on the wire, %d are allowed", sent, limit)
			}
			if _, loss, ok, err := r.importer(t).Imported(t.Context(), request("1").Owner); !ok || loss != "" || err != nil {
				t.Errorf("imported %v, error %v", ok, err)
			}
		})
	}
}

// The file is replaced while blobs are on their way. The import says so, and nothing is left of it; the next one imports
// the new file.
func TestWebServerReplacesFile(t *testing.T) {
	dir := t.TempDir()
	file, other := filepath.Join(dir, "old.tar"), filepath.Join(dir, "new.tar")
	need := needed(fivePlatforms(t, file, 0))
	target := fivePlatforms(t, other, 100).Images[0].Target
	// nginx makes its ETag of size and second, and both may be the same.
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(other, later, later); err != nil {
		t.Fatal(err)
	}
	for name, options := range connections {
		t.Run(name, func(t *testing.T) {
			r := startRuntime(t, cluster.ContainerdOptions{})
			r.bystander(t)
			before := r.state(t)
			served := filepath.Join(dir, "a.tar")
			if err := errors.Join(os.Link(other, served+".new"), os.Link(file, served)); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(served)
			wire := startRelay(t, startNginx(t, dir))
			src := openURL(t, wire, plainPath)
			replaced := make(chan error, 1)
			wire.resetAt(need*3/4, func() { replaced <- os.Rename(served+".new", served) })
			_, err := r.importerWith(t, options).Import(t.Context(), src, request("1"))
			if !errors.Is(err, source.ErrChanged) {
				t.Errorf("error %v", err)
			}
			if err := <-replaced; err != nil {
				t.Fatal(err)
			}
			unchanged(t, before, r.state(t))
			got, err := r.importerWith(t, options).Import(t.Context(), openURL(t, wire, plainPath), request("1"))
			if err != nil || got.Images[0].Digest != target.Digest {
				t.Errorf("the new one: %+v, %v", got.Images, err)
			}
		})
	}
}

// connections are what an import may have to the server.
var connections = map[string]importer.Options{"one connection": {Concurrency: 1}, "four connections": {Concurrency: 4}}

// wireLimit is what an import of so many bytes may cost, the heads of responses included.
func wireLimit(need int64) int64 { return need + need/50 + 1<<20 }

// fivePlatforms writes an archive of 35 MiB, of which one platform needs a fifth. Its blobs lie in the order of their
// digests, as most tools write them. The seed makes it another archive.
func fivePlatforms(t *testing.T, path string, seed uint64) *builder.Built {
	t.Helper()
	img := builder.Image{Names: []string{app}}
	for _, platform := range []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/ppc64le", "linux/s390x"} {
		p := builder.PlatformImage{Platform: builder.Platform(platform)}
		for _, size := range []int64{3 << 20, 3 << 20, 1 << 20} {
			p.Layers = append(p.Layers, builder.Layer{Files: []builder.File{builder.Noise("file", seed, size)}})
			seed++
		}
		img.Platforms = append(img.Platforms, p)
	}
	b, err := builder.Archive{Images: []builder.Image{img}, Edits: []builder.Edit{byName}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := b.WriteTo(f); err != nil || n < 4*wireLimit(needed(b)) {
		t.Fatalf("%d bytes are too few for the bound to say anything, or %v", n, err)
	}
	return b
}

func byName(members []builder.Member) []builder.Member {
	return slices.SortedStableFunc(slices.Values(members), func(a, b builder.Member) int { return strings.Compare(a.Name, b.Name) })
}

func openURL(t *testing.T, wire *relay, path func(host string) string) source.Blob {
	t.Helper()
	host := wire.Addr().String()
	b, err := source.OpenHTTP(t.Context(), source.HTTPOptions{URL: "http://" + host + path(host), Anywhere: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func plainPath(string) string { return "/a.tar" }

// startNginx runs Debian's nginx as Debian configures it, as far as files are concerned.
func startNginx(t *testing.T, dir string) string {
	address, home := freeAddress(t), t.TempDir()
	config := filepath.Join(home, "nginx.conf")
	err := os.WriteFile(config, fmt.Appendf(nil, `
daemon off;
user root;
worker_processes 2;
pid %[1]s/pid;
events {}
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  server { listen %[2]s; root %[3]s; }
}`, home, address, dir), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	startProcess(t, address, "nginx", "-e", "stderr", "-p", home, "-c", config)
	return address
}

func startPython(t *testing.T, dir string) string {
	address := freeAddress(t)
	host, port, _ := strings.Cut(address, ":")
	startProcess(t, address, "python3", "-m", "http.server", "--bind", host, "--directory", dir, port)
	return address
}

func startGoServer(t *testing.T, dir string) string {
	return serve(t, http.FileServer(http.Dir(dir)))
}

func serve(t *testing.T, h http.Handler) (address string) {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// presignKey is the secret of who may hand out URLs.
const presignKey = "s3cr3t"

// presignature covers all that S3's does of a request without a body: who has the URL may do this one thing for a while.
func presignature(method, host, path, expires string) string {
	mac := hmac.New(sha256.New, []byte(presignKey))
	fmt.Fprintf(mac, "%s\n%s\n%s\n%s", method, host, path, expires)
	return hex.EncodeToString(mac.Sum(nil))
}

func presignedPath(host string) string {
	expires := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	return "/bucket/a.tar?X-Amz-Expires=" + expires + "&X-Amz-Signature=" + presignature(http.MethodGet, host, "/bucket/a.tar", expires)
}

// startPresigned is an object store: an ETag of the content, no date, and 403 for all that is not signed.
func startPresigned(t *testing.T, dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(data))
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		want := presignature(r.Method, r.Host, r.URL.Path, q.Get("X-Amz-Expires"))
		until, err := strconv.ParseInt(q.Get("X-Amz-Expires"), 10, 64)
		if err != nil || time.Now().Unix() > until || !hmac.Equal([]byte(want), []byte(q.Get("X-Amz-Signature"))) {
			http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	url := "http://" + address + presignedPath(address)
	unsigned, _, _ := strings.Cut(url, "?")
	for _, ask := range []struct {
		method, url string
		status      int
	}{{http.MethodGet, url, 200}, {http.MethodHead, url, 403}, {http.MethodGet, unsigned, 403}} {
		req, err := http.NewRequestWithContext(t.Context(), ask.method, ask.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != ask.status {
			t.Fatalf("%s %s: %s", ask.method, ask.url, res.Status)
		}
	}
	return address
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startProcess runs a server in the foreground until the test is over, and waits until it accepts connections.
func startProcess(t *testing.T, address, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := <-ended; t.Failed() {
			t.Logf("%s: %v: %s", name, err, out.String())
		}
	})
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v", name, err)
		case <-t.Context().Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
