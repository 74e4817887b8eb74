package source_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tarlift/tarlift/internal/source"
)

// good is an address of loopback that the tests allow: a server that an archive may be at.
const good = "127.0.0.2"

var goodPrefix = netip.MustParsePrefix(good + "/32")

// serveAt serves at an address; the port is of the system's choice when it is 0.
func serveAt(t *testing.T, host string, port int, h http.Handler) (srv *httptest.Server, accepted *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingListener{Listener: l}
	srv = httptest.NewUnstartedServer(h)
	srv.Listener.Close()
	srv.Listener = counting
	srv.Start()
	t.Cleanup(srv.Close)
	return srv, &counting.accepted
}

// dials remembers what was dialled.
type dials struct {
	mu    sync.Mutex
	addrs []string
}

func (d *dials) add(ap netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs = append(d.addrs, ap.Addr().String())
}

// besides is how many of the dials went elsewhere.
func (d *dials) besides(addr string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, a := range d.addrs {
		if a != addr {
			n++
		}
	}
	return n
}

var names = zone{
	"loopback.example":         always("127.0.0.1"),
	"loopback6.example":        always("::1"),
	"zero.example":             always("0.0.0.0"),
	"zero6.example":            always("::"),
	"several.example":          always("127.0.0.3", "::1", "0.0.0.0"),
	"127.0.0.1.wild.example":   always("127.0.0.1"),
	"mapped.example":           always("::ffff:127.0.0.1"),
	"metadata.example":         always("169.254.169.254"),
	"metadata6.example":        always("fd00:ec2::254"),
	"nat64.example":            always("64:ff9b::7f00:1"),
	"linklocal.example":        always("fe80::1"),
	"metadata.google.internal": always("169.254.169.254"),
	"good.example":             always(good),
	"mixed.example":            always("127.0.0.1", good),
	"rebinding.example": func(n int) []string {
		if n == 1 {
			return []string{good}
		}
		return []string{"127.0.0.1"}
	},
}

// forbidden are ways to ask for what nobody may be asked. PORT is where the victim listens, on 127.0.0.1 and ::1.
// Of those that reach it is shown first that they do when nothing is checked.
var forbidden = []struct {
	url     string
	why     string
	reaches bool
}{
	{"http://127.0.0.1:PORT/", "a service of the node", true},
	{"http://127.0.0.3:PORT/", "all of 127/8 is loopback", false},
	{"http://127.255.255.254:PORT/", "the last of them", false},
	{"http://[::1]:PORT/", "loopback of IPv6", true},
	{"http://[0:0:0:0:0:0:0:1]:PORT/", "written out", true},
	{"http://[::1%25lo]:PORT/", "with a zone", true},
	{"http://localhost:PORT/", "by name", true},
	{"http://LOCALHOST.:PORT/", "with the root's dot, in capitals", false},
	{"http://a.localhost:PORT/", "RFC 6761", false},
	{"http://0.0.0.0:PORT/", "Linux takes it for loopback", true},
	{"http://0.0.0.1:PORT/", "this network", false},
	{"http://[::]:PORT/", "the same for IPv6", true},
	{"http://[::ffff:127.0.0.1]:PORT/", "mapped", true},
	{"http://[::ffff:7f00:1]:PORT/", "mapped, hexadecimal", true},
	{"http://[::ffff:0:0]:PORT/", "mapped unspecified", true},
	{"http://[::127.0.0.1]:PORT/", "compatible", false},
	{"http://[::ffff:0:127.0.0.1]:PORT/", "translated", false},
	{"http://[64:ff9b::127.0.0.1]:PORT/", "NAT64", false},
	{"http://[64:ff9b::a9fe:a9fe]/", "metadata by NAT64", false},
	{"http://[64:ff9b:1::169.254.169.254]/", "metadata by a local NAT64", false},
	{"http://[64:ff9b:1:a9fe:a9:fe00::]/", "the same with a prefix of 48 bits", false},
	{"http://[2002:7f00:1::]:PORT/", "6to4", false},
	{"http://[2002:a9fe:a9fe::1]/", "metadata by 6to4", false},
	{"http://[2001:0:1:2:3:4:80ff:fffe]:PORT/", "Teredo", false},
	{"http://[fd12::5efe:127.0.0.1]:PORT/", "ISATAP", false},
	{"http://127.1:PORT/", "short form", false},
	{"http://2130706433:PORT/", "one decimal number", false},
	{"http://0x7f000001:PORT/", "one hexadecimal number", false},
	{"http://017700000001:PORT/", "one octal number", false},
	{"http://0x7f.0.0.0x1:PORT/", "hexadecimal parts", false},
	{"http://0177.0.0.01:PORT/", "octal parts", false},
	{"http://127.0.0.1.:PORT/", "a dot at the end", false},
	{"http://0:PORT/", "0.0.0.0 in short", false},
	{"http://0x:PORT/", "0 as inet_aton reads it", false},
	{"http://①②⑦.⓪.⓪.①:PORT/", "digits that IDNA maps", true},
	{"http://127。0。0。1:PORT/", "dots that IDNA maps", true},
	{"http://169.254.169.254/latest/meta-data/", "AWS, Azure, Google, …", false},
	{"http://[::ffff:169.254.169.254]/", "the same, mapped", false},
	{"http://0xa9fea9fe/", "the same as a number", false},
	{"http://169.254.170.2/", "AWS' containers", false},
	{"http://[fd00:ec2::254]/", "AWS by IPv6", false},
	{"http://[fd00:ec2::23]/v1/credentials", "AWS' pods by IPv6", false},
	{"http://[fd20:ce::254]/", "Google by IPv6", false},
	{"http://[fd00:c1::a9fe:a9fe]/", "Oracle by IPv6", false},
	{"http://[fd00:42::42]/", "Scaleway by IPv6", false},
	{"http://[fd00:a9fe:a9fe::1]/", "Linode by IPv6", false},
	{"http://100.100.100.200/", "Alibaba", false},
	{"http://168.63.129.16/", "Azure's wire server", false},
	{"http://192.0.0.192/", "Oracle", false},
	{"http://[fe80::1]/", "link-local", false},
	{"http://[fe80::1%25eth0]/", "link-local with a zone", false},
	{"http://[febf:ffff::1]/", "the last link-local network", false},
	{"http://224.0.0.1/", "multicast", false},
	{"http://[ff02::1]/", "multicast of IPv6", false},
	{"http://255.255.255.255/", "broadcast", false},
	{"http://loopback.example:PORT/", "a name for it", true},
	{"http://loopback6.example:PORT/", "a name for ::1", true},
	{"http://zero.example:PORT/", "a name for 0.0.0.0", true},
	{"http://zero6.example:PORT/", "a name for ::", true},
	{"http://several.example:PORT/", "a name of several, all forbidden", true},
	{"http://127.0.0.1.wild.example:PORT/", "a name that looks like an address", true},
	{"http://mapped.example:PORT/", "a name for a mapped address", true},
	{"http://nat64.example:PORT/", "a name behind NAT64", false},
	{"http://linklocal.example/", "a name for a link-local address", false},
	{"http://metadata.example/", "a name for metadata", false},
	{"http://metadata6.example/", "a name for metadata by IPv6", false},
	{"http://metadata.google.internal/", "the name that Google's has", false},
	{"http://good.example@127.0.0.1:PORT/", "the host comes behind the @", false},
	{"http://good.example:80@127.0.0.1:PORT/", "user and password", false},
	{"http://127.0.0.1:PORT@good.example/", "no user is sent anywhere", false},
	{`http://good.example\@127.0.0.1:PORT/`, "a backslash ends the host for some", false},
	{"http://127.0.0.1:PORT%2f@good.example/", "escaped", false},
	{"http://127.0.0.1%00.good.example:PORT/", "NUL ends the host for some", false},
	{"gopher://127.0.0.1:PORT/", "another protocol", false},
	{"file:///etc/passwd", "no protocol", false},
}

// Whoever names a URL gets the agent to connect to nothing that is forbidden: not by another form of the address,
// not by a name, not by a redirect, not through a proxy.
func TestForbiddenAddresses(t *testing.T) {
	data := randomBytes(1000)
	victim, accepted := serveAt(t, "127.0.0.1", 0, dataHandler(data))
	port := victim.Listener.Addr().(*net.TCPAddr).Port
	_, accepted6 := serveAt(t, "::1", port, dataHandler(data))
	reached := func() int64 { return accepted.Load() + accepted6.Load() }
	redirector, _ := serveAt(t, good, 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not by http.Redirect, which mends locations.
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(http.StatusFound)
	}))
	var proxied atomic.Int64
	proxy, _ := serveAt(t, good, 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		proxied.Add(1)
		w.WriteHeader(http.StatusNotFound)
	}))
	proxyURL, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	resolver := newResolver(t, names)

	for _, tc := range forbidden {
		target := strings.ReplaceAll(tc.url, "PORT", strconv.Itoa(port))
		t.Run(tc.url, func(t *testing.T) {
			before := reached()
			if tc.reaches {
				b, err := source.OpenHTTP(t.Context(), source.Observed(quick(target), resolver, nil))
				if err != nil || reached() == before {
					t.Fatalf("nothing is reached when nothing is checked: %v", err)
				}
				closeBlob(t, b)
			}
			byRedirect := redirector.URL + "/?to=" + url.QueryEscape(target)
			for how, opts := range map[string]source.HTTPOptions{
				"directly":    quick(target),
				"by redirect": quick(byRedirect),
			} {
				var d dials
				before := reached()
				opts.Anywhere, opts.AllowAddresses = false, []netip.Prefix{goodPrefix}
				_, err := source.OpenHTTP(t.Context(), source.Observed(opts, resolver, d.add))
				want := source.ErrInvalid
				if how == "by redirect" && !parses(target) {
					want = source.ErrUnavailable // the server's failure
				}
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v: %s", how, err, want, tc.why)
				}
				if n := d.besides(good); n > 0 || reached() != before {
					t.Errorf("%s: %d connections were tried (%v), %d came: %s", how, n, d.addrs, reached()-before, tc.why)
				}
			}
			if strings.Contains(tc.url, ".example") || strings.Contains(tc.url, ".internal") {
				return // a proxy resolves it as it likes
			}
			for _, through := range []string{target, byRedirect} {
				opts := quick(through)
				opts.Anywhere, opts.AllowAddresses = false, []netip.Prefix{goodPrefix}
				opts.Proxy = func(r *http.Request) (*url.URL, error) {
					if r.URL.Hostname() == good {
						return nil, nil
					}
					return proxyURL, nil
				}
				if _, err := source.OpenHTTP(t.Context(), opts); err == nil || proxied.Load() > 0 {
					t.Fatalf("the proxy was asked %d times for %s: %v", proxied.Load(), through, err)
				}
			}
		})
	}
}

// parses tells whether a redirect can lead there at all.
func parses(target string) bool {
	_, err := url.Parse(target)
	return err == nil
}

// What an operator allows, and what was never forbidden.
func TestAllowedAddresses(t *testing.T) {
	data := randomBytes(200_000)
	srv, _ := serveAt(t, good, 0, dataHandler(data))
	port := ":" + strconv.Itoa(srv.Listener.Addr().(*net.TCPAddr).Port)
	resolver := newResolver(t, names)
	for _, tc := range []struct {
		host, why string
		allow     []string
		want      error
	}{
		{good, "loopback by default", nil, source.ErrInvalid},
		{good, "allowed", []string{"127.0.0.2/32"}, nil},
		{good, "one of several prefixes", []string{"10.0.0.0/8", "127.0.0.0/8"}, nil},
		{good, "the neighbour", []string{"127.0.0.3/32"}, source.ErrInvalid},
		{"[::ffff:127.0.0.2]", "the same address", []string{"127.0.0.2/32"}, nil},
		{"good.example", "by name", []string{"127.0.0.2/32"}, nil},
		{"mixed.example", "of two addresses the one that is allowed", []string{"127.0.0.2/32"}, nil},
		{"localhost", "another address than the allowed one", []string{"127.0.0.2/32"}, source.ErrInvalid},
	} {
		var d dials
		opts := quick("http://" + tc.host + port + "/a.tar")
		opts.Anywhere = false
		for _, p := range tc.allow {
			opts.AllowAddresses = append(opts.AllowAddresses, netip.MustParsePrefix(p))
		}
		b, err := source.OpenHTTP(t.Context(), source.Observed(opts, resolver, d.add))
		if !errors.Is(err, tc.want) || d.besides(good) > 0 {
			t.Errorf("%s: error %v, want %v, dialled %v: %s", tc.host, err, tc.want, d.addrs, tc.why)
		}
		if err == nil {
			wantSection(t, b, 0, -1, data)
			closeBlob(t, b)
		}
	}
}

// A name is checked each time that it is dialled: the second look-up may tell another address.
func TestRebinding(t *testing.T) {
	data := randomBytes(200_000)
	srv, _ := serveAt(t, good, 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		dataHandler(data)(w, r)
	}))
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	_, accepted := serveAt(t, "127.0.0.1", port, dataHandler(data))
	opts := quick("http://rebinding.example:" + strconv.Itoa(port) + "/a.tar")
	for _, tc := range []struct {
		anywhere bool
		want     error
	}{{true, nil}, {false, source.ErrInvalid}} {
		opts.Anywhere, opts.AllowAddresses = tc.anywhere, []netip.Prefix{goodPrefix}
		b := openHTTP(t, source.Observed(opts, newResolver(t, names), nil))
		before := accepted.Load()
		if _, err := readSection(t, b, 100_000, -1); !errors.Is(err, tc.want) {
			t.Errorf("anywhere %v: %v, want %v", tc.anywhere, err, tc.want)
		}
		if asked := accepted.Load() > before; asked != tc.anywhere {
			t.Errorf("anywhere %v: the other address was asked: %v", tc.anywhere, asked)
		}
	}
}

// A proxy is asked only when the caller says so, at an address that is allowed, and for names that it resolves.
func TestProxy(t *testing.T) {
	data := randomBytes(200_000)
	var asked atomic.Int64
	proxy, _ := serveAt(t, good, 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.String() != "http://behind.example/a.tar" {
			t.Errorf("the proxy was asked for %s", r.URL)
		}
		dataHandler(data)(w, r)
	}))
	proxyURL, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	opts := quick("http://behind.example/a.tar")
	opts.Anywhere, opts.AllowAddresses = false, []netip.Prefix{goodPrefix}
	opts = source.Observed(opts, newResolver(t, names), nil)
	if _, err := source.OpenHTTP(t.Context(), opts); !errors.Is(err, source.ErrUnavailable) || asked.Load() > 0 {
		t.Errorf("without a proxy: %v, asked %d times", err, asked.Load())
	}
	opts.Proxy = http.ProxyURL(proxyURL)
	b := openHTTP(t, opts)
	wantSection(t, b, 0, -1, data)
	opts.AllowAddresses = nil
	before := asked.Load()
	if _, err := source.OpenHTTP(t.Context(), opts); !errors.Is(err, source.ErrInvalid) || asked.Load() != before {
		t.Errorf("a proxy on loopback: %v, asked %d times", err, asked.Load()-before)
	}
}

// The message is all that the author of a spec gets to see.
func TestForbiddenAddressSaysWhatToDo(t *testing.T) {
	opts := quick("http://loopback.example/")
	opts.Anywhere = false
	resolver := newResolver(t, names)
	for host, address := range map[string]string{"loopback.example": "127.0.0.1", "127.0.0.1": "127.0.0.1"} {
		opts.URL = "http://" + host + "/?sig=s3cr3t"
		_, err := source.OpenHTTP(t.Context(), source.Observed(opts, resolver, nil))
		if err == nil {
			t.Fatal("not refused")
		}
		for _, part := range []string{address + " is a loopback address", "--allow-source-addresses", "node.allowSourceAddresses"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
		if strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("a secret in %q", err)
		}
	}
}
