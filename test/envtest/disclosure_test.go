package envtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/node"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// What must not be seen by whoever may see objects and logs, but neither specs nor Secrets.
const (
	secretQuery    = "s3cr3t-signature/+x"
	secretPassword = "s3cr3t-pässword"
	secretToken    = "s3cr3t-token"
	secretKey      = "s3cr3t-key"
	secretBody     = "s3cr3t-answer"
)

// disclosures are the forms in which a secret may turn up.
func disclosures() []string {
	forms := []string{"s3cr3t", base64.StdEncoding.EncodeToString([]byte("nodes:" + secretPassword))}
	for _, s := range []string{secretQuery, secretPassword, secretToken, secretKey, secretBody} {
		forms = append(forms, s, url.QueryEscape(s), base64.StdEncoding.EncodeToString([]byte(s)), fmt.Sprintf("%x", s))
	}
	return forms
}

// log collects what is logged, at every level.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) logger() logr.Logger {
	return funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		fmt.Fprintln(&l.buf, prefix, args)
	}, funcr.Options{Verbosity: 100})
}

func (l *log) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// unhelpful is a server that gets every secret and answers with it, in many ways of failing.
type unhelpful struct {
	mu   sync.Mutex
	seen strings.Builder
}

func (u *unhelpful) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	fmt.Fprintln(&u.seen, r.URL.RawQuery, r.Header.Get("Authorization"))
	u.mu.Unlock()
	echo := secretBody + r.URL.RawQuery + r.Header.Get("Authorization")
	w.Header().Set("X-Echo", echo)
	w.Header().Set("WWW-Authenticate", `Basic realm="`+secretBody+`"`)
	switch r.URL.Path {
	case "/denied":
		http.Error(w, echo, http.StatusForbidden)
	case "/unauthorized":
		http.Error(w, echo, http.StatusUnauthorized)
	case "/absent":
		http.Error(w, echo, http.StatusNotFound)
	case "/metadata":
		http.Redirect(w, r, "http://169.254.169.254/"+"?"+url.Values{"x": {echo}}.Encode(), http.StatusFound)
	case "/loop":
		http.Redirect(w, r, "/loop?"+url.Values{"x": {echo}}.Encode(), http.StatusFound)
	case "/user":
		http.Redirect(w, r, "http://nodes:"+url.QueryEscape(secretPassword)+"@127.0.0.1/", http.StatusFound)
	case "/garbage", "/range":
		u.lie(w, r, echo)
	default: // the first part, and then no more
		if !strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			http.Error(w, echo, http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", `"`+secretBody+`"`)
		w.Header().Set("Content-Range", "bytes 0-9/200000")
		w.WriteHeader(http.StatusPartialContent)
		w.Write([]byte("0123456789"))
	}
}

// lie answers with what is not HTTP, or no answer to the question.
func (u *unhelpful) lie(w http.ResponseWriter, r *http.Request, echo string) {
	if r.URL.Path == "/range" {
		w.Header().Set("Content-Range", "bytes "+echo)
		w.WriteHeader(http.StatusPartialContent)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	conn.Write([]byte(echo + "\r\n\r\n"))
}

// failingSources are the specs of sources by what fails.
func failingSources(server string) map[string]string {
	query := "?sig=" + url.QueryEscape(secretQuery) + "#" + secretQuery
	at := func(path, more string) string {
		return fmt.Sprintf("source: {http: {url: '%s/%s%s'%s}}\n", server, path, query, more)
	}
	basic, bearer := ", secretRef: {name: dis-basic}", ", secretRef: {name: dis-bearer}"
	return map[string]string{
		"denied": at("denied", basic), "unauthorized": at("unauthorized", bearer), "absent": at("absent", basic),
		"metadata": at("metadata", bearer), "loop": at("loop", basic), "user": at("user", basic),
		"garbage": at("garbage", basic), "range": at("range", bearer), "later": at("later", basic),
		"two-credentials": at("x", ", secretRef: {name: dis-both}"),
		"broken-token":    at("x", ", secretRef: {name: dis-newline}"),
		"no-key":          at("x", ", certSecretRef: {name: dis-key}"),
		"no-ca":           at("x", ", certSecretRef: {name: dis-ca}"),
		"unlabelled":      at("x", ", secretRef: {name: dis-unlabelled}"),
		"other-keys":      at("x", ", secretRef: {name: dis-other}"),
		"no-tls":          fmt.Sprintf("source: {http: {url: 'https%s/x%s'%s}}\n", strings.TrimPrefix(server, "http"), query, basic),
		"forbidden":       fmt.Sprintf("source: {http: {url: 'http://[::1]/x%s'%s}}\n", query, basic),
	}
}

// readingNode is a node whose imports read their archives to the end, and do nothing else.
type readingNode struct{ *fakeNode }

func (n readingNode) Import(ctx context.Context, b source.Blob, _ importer.Request) (importer.Result, error) {
	r, err := b.Section(ctx, 0, -1)
	if err != nil {
		return importer.Result{}, err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return importer.Result{}, err
}

func (n readingNode) startLogging(t *testing.T, logger logr.Logger, metrics *prometheus.Registry) {
	t.Helper()
	options := ctrl.Options{Cache: node.Cache(n.name), Logger: logger}
	start(t, onNode(n.name), options, func(mgr ctrl.Manager) error {
		return (&node.Reconciler{
			Client:   mgr.GetClient(),
			Importer: n,
			Sources:  node.Sources{Secrets: mgr.GetAPIReader(), Namespace: systemNamespace, AllowAddresses: loopback},
			NodeName: n.name,
			Metrics:  metrics,
		}).SetupWithManager(mgr)
	})
}

func createSecrets(t *testing.T) {
	t.Helper()
	for name, data := range map[string]map[string]string{
		"basic":      {"username": "nodes", "password": secretPassword},
		"bearer":     {"bearerToken": secretToken},
		"both":       {"username": "nodes", "password": secretPassword, "bearerToken": secretToken},
		"newline":    {"bearerToken": secretToken + "\n" + secretToken},
		"key":        {"tls.crt": secretKey, "tls.key": secretKey},
		"ca":         {"ca.crt": secretKey},
		"unlabelled": {"bearerToken": secretToken},
		"other":      {secretKey: secretKey, "note": secretToken},
	} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "dis-" + name, Namespace: systemNamespace}, StringData: data}
		if name != "unlabelled" {
			s.Labels = map[string]string{v1alpha1.LabelSource: "true"}
			s.Annotations = map[string]string{v1alpha1.AnnotationHosts: "127.0.0.1"}
		}
		create(t, s)
	}
}

// Whatever a source does with the credentials that it gets, they and its answers are in no log, Event, status or metric.
func TestNothingIsDisclosed(t *testing.T) {
	var logged log
	klog.SetLogger(logged.logger())
	t.Cleanup(klog.ClearLogger)
	u := &unhelpful{}
	server := httptest.NewServer(u)
	t.Cleanup(server.Close)
	createSecrets(t)
	n := readingNode{newFakeNode(t, "disclosure")}
	metrics := prometheus.NewRegistry()
	n.startLogging(t, logged.logger(), metrics)
	startController(t)
	sources := failingSources(server.URL)
	for name, spec := range sources {
		createCounted(t, typed[v1alpha1.ImageArchive](t, archiveWith(t, "dis-"+name, spec+"nodeSelector: {matchLabels: {node: "+n.name+"}}")))
	}

	shown := map[string]string{}
	eventually(t, "every archive to have failed, by all reports", func() (bool, string) {
		shown = n.shown(t, sources)
		for name := range sources {
			for where, text := range shown {
				if !strings.Contains(text, "dis-"+name) {
					return false, "dis-" + name + " is missing in " + where
				}
			}
		}
		return true, ""
	})
	shown["log"] = logged.text()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown["metrics"] = fmt.Sprint(families)
	for where, text := range shown {
		for _, form := range disclosures() {
			if i := strings.Index(text, form); i >= 0 {
				t.Errorf("%s discloses %q: …%s…", where, form, text[max(i-200, 0):min(i+100, len(text))])
			}
		}
	}
	if !strings.Contains(shown["log"], "dis-denied") || len(families) == 0 {
		t.Errorf("the log has %d bytes, there are %d metrics", len(shown["log"]), len(families))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, sent := range []string{url.QueryEscape(secretQuery), secretToken, base64.StdEncoding.EncodeToString([]byte("nodes:" + secretPassword))} {
		if !strings.Contains(u.seen.String(), sent) {
			t.Errorf("%q was never sent, so that nobody could have given it away", sent)
		}
	}
}

// shown is what others than the owners of Secrets and specs get to see of failed archives, by kind.
func (f *fakeNode) shown(t *testing.T, sources map[string]string) map[string]string {
	t.Helper()
	var state v1alpha1.NodeImageState
	if err := admin.Get(t.Context(), client.ObjectKey{Name: f.name}, &state); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	var failed []v1alpha1.ArchiveState
	for _, a := range state.Status.Archives {
		if a.LastError != nil {
			failed = append(failed, a)
		}
	}
	statuses := map[string]v1alpha1.ImageArchiveStatus{}
	for name := range sources {
		var a v1alpha1.ImageArchive
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "dis-" + name}, &a); err != nil {
			t.Fatal(err)
		}
		if len(a.Status.Failures) > 0 {
			statuses[a.Name] = a.Status
		}
	}
	var events eventsv1.EventList
	if err := admin.List(context.Background(), &events); err != nil {
		t.Fatal(err)
	}
	var notes []string
	for _, e := range events.Items {
		if e.Regarding.Name == f.name || strings.HasPrefix(e.Regarding.Name, "dis-") {
			notes = append(notes, e.String())
		}
	}
	return map[string]string{
		"NodeImageState": asJSON(t, failed), "ImageArchive": asJSON(t, statuses), "Events": strings.Join(notes, "\n"),
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
