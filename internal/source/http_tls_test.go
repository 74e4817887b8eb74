package source_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// authority is a private CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue gives a certificate and its key, as PEM.
func (a *authority) issue(t *testing.T, host net.IP, notAfter time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: notAfter, IPAddresses: []net.IP{host}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

var (
	loopback = net.IPv4(127, 0, 0, 1)
	inAnHour = time.Now().Add(time.Hour)
)

// newTLSServer serves handler with a certificate that ca issued.
func newTLSServer(t *testing.T, certPEM, keyPEM []byte, config *tls.Config, handler http.Handler) *httptest.Server {
	t.Helper()
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = []tls.Certificate{pair}
	srv := httptest.NewUnstartedServer(handler)
	srv.TLS = config
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are the point
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func dataHandler(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", strongETag)
		serveData(w, r, data)
	}
}

func TestHTTPSPrivateCA(t *testing.T) {
	data := randomBytes(200_000)
	ca, stranger := newAuthority(t), newAuthority(t)
	for name, tc := range map[string]struct {
		why      string
		host     net.IP
		notAfter time.Time
		trust    []byte
		want     error
	}{
		"trusted":    {"the CA is given", loopback, inAnHour, ca.pem, nil},
		"no CA":      {"the system does not know it", loopback, inAnHour, nil, source.ErrUnavailable},
		"other CA":   {"the given CA is the only one", loopback, inAnHour, stranger.pem, source.ErrUnavailable},
		"other host": {"a certificate for somebody else", net.IPv4(127, 0, 0, 2), inAnHour, ca.pem, source.ErrUnavailable},
		"expired":    {"no longer valid", loopback, time.Now().Add(-time.Minute), ca.pem, source.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			certPEM, keyPEM := ca.issue(t, tc.host, tc.notAfter)
			srv := newTLSServer(t, certPEM, keyPEM, &tls.Config{}, dataHandler(data))
			opts := quick(srv.URL)
			opts.CA = tc.trust
			b, err := source.OpenHTTP(t.Context(), opts)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v: %s", err, tc.want, tc.why)
			}
			if err == nil {
				defer closeBlob(t, b)
				wantSection(t, b, 0, -1, data)
			}
		})
	}
}

func TestHTTPSClientCertificate(t *testing.T) {
	data := randomBytes(200_000)
	ca, stranger := newAuthority(t), newAuthority(t)
	serverCert, serverKey := ca.issue(t, loopback, inAnHour)
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)

	// The other server takes any client certificate, and tells whether it was shown one.
	var shown atomic.Int64
	elsewhere := newTLSServer(t, serverCert, serverKey, &tls.Config{ClientAuth: tls.RequestClientCert},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			shown.Add(int64(len(r.TLS.PeerCertificates)))
			dataHandler(data)(w, r)
		}))
	srv := newTLSServer(t, serverCert, serverKey, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients},
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/elsewhere" {
				http.Redirect(w, r, elsewhere.URL, http.StatusFound)
				return
			}
			dataHandler(data)(w, r)
		}))

	opts := quick(srv.URL)
	opts.CA = ca.pem
	if _, err := source.OpenHTTP(t.Context(), opts); !errors.Is(err, source.ErrDenied) {
		t.Errorf("without certificate: %v", err)
	}
	opts.Cert, opts.Key = stranger.issue(t, loopback, inAnHour)
	if _, err := source.OpenHTTP(t.Context(), opts); !errors.Is(err, source.ErrDenied) {
		t.Errorf("with a stranger's certificate: %v", err)
	}
	opts.Cert, opts.Key = ca.issue(t, loopback, inAnHour)
	wantSection(t, openHTTP(t, opts), 0, -1, data)

	opts.URL += "/elsewhere"
	wantSection(t, openHTTP(t, opts), 0, -1, data)
	if shown.Load() > 0 {
		t.Error("the client certificate was shown to the server that the redirect led to")
	}
}

// What https protects must not go on in the clear.
func TestHTTPSIsNotDowngraded(t *testing.T) {
	plain := newServer(t, randomBytes(1000), nil)
	ca := newAuthority(t)
	certPEM, keyPEM := ca.issue(t, loopback, inAnHour)
	srv := newTLSServer(t, certPEM, keyPEM, &tls.Config{}, http.RedirectHandler(plain.URL, http.StatusFound))
	opts := quick(srv.URL)
	opts.CA = ca.pem
	if _, err := source.OpenHTTP(t.Context(), opts); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("https to http: %v", err)
	}
	if len(plain.seen()) > 0 {
		t.Error("the plain server was asked")
	}
}

func TestHTTPSToPlainServer(t *testing.T) {
	srv := newServer(t, nil, nil)
	_, err := source.OpenHTTP(t.Context(), quick("https"+srv.URL[len("http"):]))
	if !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}
