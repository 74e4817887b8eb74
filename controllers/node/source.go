package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/source"
)

// Sources opens what spec.source describes. The errors are those of package source.
type Sources struct {
	// Secrets reads single Secrets; it must not cache, since agents may only get Secrets, not list or watch them.
	Secrets client.Reader
	// Namespace of the Secrets.
	Namespace string
	// ArchiveDir is the directory on the node that file sources lie in. Empty: there are none.
	ArchiveDir string
	// AllowAddresses are those of loopback, link-local and multicast networks and of metadata services that http
	// sources may be at all the same. Whoever writes a spec must not reach what trusts its neighbours on the node.
	AllowAddresses []netip.Prefix
	// Proxy chooses the proxy of http sources; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
}

// Location is where an archive lies, with the credentials to read it. The errors are those of package source.
type Location interface {
	// Open opens the archive.
	Open(ctx context.Context) (source.Blob, error)
	// Changed says whether Open would give other bytes than those that had this validator.
	Changed(ctx context.Context, validator string) (bool, error)
}

type httpLocation source.HTTPOptions

func (l httpLocation) Open(ctx context.Context) (source.Blob, error) {
	return source.OpenHTTP(ctx, source.HTTPOptions(l))
}

func (l httpLocation) Changed(ctx context.Context, validator string) (bool, error) {
	return source.HTTPChanged(ctx, source.HTTPOptions(l), validator)
}

type fileLocation struct{ dir, path string }

func (l fileLocation) Open(ctx context.Context) (source.Blob, error) {
	return source.OpenUnder(ctx, l.dir, l.path)
}

func (l fileLocation) Changed(ctx context.Context, validator string) (bool, error) {
	return source.ChangedUnder(ctx, l.dir, l.path, validator)
}

// ErrSecretUnavailable is that the API server did not give a Secret, so that nothing was tried yet.
var ErrSecretUnavailable = errors.New("the API server did not give the Secret")

// Resolve finds what a spec describes. It reads Secrets, and waits for nothing: an API server that does not answer is
// ErrSecretUnavailable.
func (s Sources) Resolve(ctx context.Context, spec v1alpha1.Source) (Location, error) {
	switch {
	case spec.HTTP != nil:
		o, err := s.httpOptions(ctx, spec.HTTP)
		return httpLocation(o), err
	case spec.File != nil && s.ArchiveDir == "":
		return nil, fmt.Errorf("open %q: this agent has no archive directory: %w", spec.File.Path, source.ErrInvalid)
	case spec.File != nil:
		return fileLocation{s.ArchiveDir, spec.File.Path}, nil
	}
	return nil, fmt.Errorf("spec.source: of no kind that this agent knows: %w", source.ErrInvalid)
}

func (s Sources) httpOptions(ctx context.Context, spec *v1alpha1.HTTPSource) (source.HTTPOptions, error) {
	o := source.HTTPOptions{URL: spec.URL, AllowAddresses: s.AllowAddresses, Proxy: s.Proxy}
	if ref := spec.SecretRef; ref != nil {
		data, err := s.secret(ctx, ref.Name, spec.URL, "username", "password", "bearerToken")
		if err != nil {
			return o, fmt.Errorf("spec.source.http.secretRef: %w", err)
		}
		o.Username, o.Password = string(data["username"]), string(data["password"])
		o.BearerToken = string(data["bearerToken"])
	}
	if ref := spec.CertSecretRef; ref != nil {
		data, err := s.secret(ctx, ref.Name, spec.URL, "ca.crt", "tls.crt", "tls.key")
		if err != nil {
			return o, fmt.Errorf("spec.source.http.certSecretRef: %w", err)
		}
		o.CA, o.Cert, o.Key = data["ca.crt"], data["tls.crt"], data["tls.key"]
	}
	return o, nil
}

// secretTimeout is how long the API server may take to answer.
const secretTimeout = 5 * time.Second

// secret returns the data of a Secret that is labelled for this use, may be sent to the URL's host, and has at least one of the
// keys. Without the hosts, whoever may create an ImageArchive could send each such Secret to a server of his own. Of the API
// server's own error no text is kept: it differs from attempt to attempt.
func (s Sources) secret(ctx context.Context, name, address string, keys ...string) (map[string][]byte, error) {
	var secret corev1.Secret
	quiet := logr.NewContext(ctx, logr.Discard()) // client-go logs the bodies of responses, where somebody wants to see them
	limited, cancel := context.WithTimeout(quiet, secretTimeout)
	defer cancel()
	err := s.Secrets.Get(limited, types.NamespacedName{Namespace: s.Namespace, Name: name}, &secret)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("secret %q does not exist in namespace %q: %w", name, s.Namespace, source.ErrDenied)
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("the agent may not read secret %q in namespace %q: %w", name, s.Namespace, source.ErrDenied)
	case err != nil:
		return nil, fmt.Errorf("secret %q: %w", name, ErrSecretUnavailable)
	case secret.Labels[v1alpha1.LabelSource] != "true":
		return nil, fmt.Errorf("secret %q lacks the label %s=true: %w", name, v1alpha1.LabelSource, source.ErrDenied)
	}
	if err := s.checkHost(name, secret.Annotations[v1alpha1.AnnotationHosts], address); err != nil {
		return nil, err
	}
	for _, k := range keys {
		if len(secret.Data[k]) > 0 {
			return secret.Data, nil
		}
	}
	return nil, fmt.Errorf("secret %q has none of the keys %q: %w", name, keys, source.ErrDenied)
}

// plainHost matches hosts that mean nothing to a shell, since people copy the command in checkHost's message.
var plainHost = regexp.MustCompile(`^[a-zA-Z0-9._:\[\]-]+$`)

// checkHost returns an error, which says what to add, unless the list of hosts of a Secret has the one of a URL.
func (s Sources) checkHost(secret, hosts, address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || !plainHost.MatchString(u.Host):
		return fmt.Errorf("a Secret needs a URL whose host consists of ASCII letters, digits, dots and hyphens: %w", source.ErrInvalid)
	case allowsHost(hosts, u):
		return nil
	case hosts == "":
		return fmt.Errorf("secret %q names no hosts; if it is meant for this one: kubectl annotate secret %s --namespace %s %s=%s: %w",
			secret, secret, s.Namespace, v1alpha1.AnnotationHosts, u.Host, source.ErrDenied)
	}
	// The command would replace the other hosts.
	return fmt.Errorf("secret %q in namespace %q is not for this host; if it is meant for it, add %s to its annotation %s: %w",
		secret, s.Namespace, u.Host, v1alpha1.AnnotationHosts, source.ErrDenied)
}

// allowsHost says whether a list of hosts, separated by commas, has the one of a URL: by its name or address, for any port, or
// with the port.
func allowsHost(hosts string, u *url.URL) bool {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	for host := range strings.SplitSeq(hosts, ",") {
		host = strings.TrimSpace(host)
		for _, own := range []string{u.Host, u.Hostname(), net.JoinHostPort(u.Hostname(), port)} {
			if host != "" && strings.EqualFold(host, own) {
				return true
			}
		}
	}
	return false
}
