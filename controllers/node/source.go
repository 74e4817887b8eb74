package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
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

// Open opens what a spec describes.
func (s Sources) Open(ctx context.Context, spec v1alpha1.Source) (source.Blob, error) {
	web, path, err := s.locate(ctx, spec)
	switch {
	case err != nil:
		return nil, err
	case web != nil:
		return source.OpenHTTP(ctx, *web)
	}
	return source.OpenUnder(ctx, s.ArchiveDir, path)
}

// Changed says whether Open would give other bytes than those that had this validator.
func (s Sources) Changed(ctx context.Context, spec v1alpha1.Source, validator string) (bool, error) {
	web, path, err := s.locate(ctx, spec)
	switch {
	case err != nil:
		return false, err
	case web != nil:
		return source.HTTPChanged(ctx, *web, validator)
	}
	return source.ChangedUnder(ctx, s.ArchiveDir, path, validator)
}

// locate is the one switch from a spec to a source: a web server, or else a path below ArchiveDir.
func (s Sources) locate(ctx context.Context, spec v1alpha1.Source) (web *source.HTTPOptions, path string, err error) {
	switch {
	case spec.HTTP != nil:
		o, err := s.httpOptions(ctx, spec.HTTP)
		return &o, "", err
	case spec.File != nil && s.ArchiveDir == "":
		return nil, "", fmt.Errorf("open %q: this agent has no archive directory: %w", spec.File.Path, source.ErrInvalid)
	case spec.File != nil:
		return nil, spec.File.Path, nil
	}
	return nil, "", fmt.Errorf("spec.source: of no kind that this agent knows: %w", source.ErrInvalid)
}

func (s Sources) httpOptions(ctx context.Context, spec *v1alpha1.HTTPSource) (source.HTTPOptions, error) {
	o := source.HTTPOptions{URL: spec.URL, AllowAddresses: s.AllowAddresses, Proxy: s.Proxy}
	if ref := spec.SecretRef; ref != nil {
		data, err := s.secret(ctx, ref.Name, "username", "password", "bearerToken")
		if err != nil {
			return o, fmt.Errorf("spec.source.http.secretRef: %w", err)
		}
		o.Username, o.Password = string(data["username"]), string(data["password"])
		o.BearerToken = string(data["bearerToken"])
	}
	if ref := spec.CertSecretRef; ref != nil {
		data, err := s.secret(ctx, ref.Name, "ca.crt", "tls.crt", "tls.key")
		if err != nil {
			return o, fmt.Errorf("spec.source.http.certSecretRef: %w", err)
		}
		o.CA, o.Cert, o.Key = data["ca.crt"], data["tls.crt"], data["tls.key"]
	}
	return o, nil
}

const (
	// secretPatience is how long to wait for an API server that is away: it is upgraded, or the control plane moves.
	// The import that needs the Secret has not failed meanwhile, and gives its place to others.
	secretPatience = 15 * time.Minute
	// secretTimeout is how long it may take to answer, and secretRetryLimit bounds the wait before it is asked again.
	secretTimeout    = 10 * time.Second
	secretRetryLimit = 10 * time.Second
)

// get reads a Secret, and waits for an API server that is away.
func (s Sources) get(ctx context.Context, name string, secret *corev1.Secret) error {
	var failures attempt
	for begin := time.Now(); ; {
		limited, cancel := context.WithTimeout(ctx, secretTimeout)
		err := s.Secrets.Get(limited, types.NamespacedName{Namespace: s.Namespace, Name: name}, secret)
		cancel()
		now := time.Now()
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || now.Sub(begin) > secretPatience {
			return err
		}
		failures.failed(now, secretRetryLimit, rand.Float64)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(failures.notBefore.Sub(now)):
		}
	}
}

// secret returns the data of a Secret that is labelled for this use and has at least one of the keys. Of the API
// server's own error no text is kept: it differs from attempt to attempt.
func (s Sources) secret(ctx context.Context, name string, keys ...string) (map[string][]byte, error) {
	var secret corev1.Secret
	err := s.get(ctx, name, &secret)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("secret %q does not exist in namespace %q: %w", name, s.Namespace, source.ErrDenied)
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("the agent may not read secret %q in namespace %q: %w", name, s.Namespace, source.ErrDenied)
	case err != nil:
		return nil, fmt.Errorf("the API server did not give secret %q: %w", name, source.ErrUnavailable)
	case secret.Labels[v1alpha1.LabelSource] != "true":
		return nil, fmt.Errorf("secret %q lacks the label %s=true: %w", name, v1alpha1.LabelSource, source.ErrDenied)
	}
	for _, k := range keys {
		if len(secret.Data[k]) > 0 {
			return secret.Data, nil
		}
	}
	return nil, fmt.Errorf("secret %q has none of the keys %q: %w", name, keys, source.ErrDenied)
}

// requestFor says to the importer what a spec wants.
func requestFor(a *v1alpha1.ImageArchive) importer.Request {
	spec := &a.Spec
	return importer.Request{
		Owner:       ownerOf(a),
		Digest:      digest.Digest(spec.Digest),
		IndexDigest: digest.Digest(spec.IndexDigest),
		Selection:   selectionOf(&spec.Images),
		Unpack:      ptr.Deref(spec.Unpack, true),
		Pin:         ptr.Deref(spec.Pin, true),
		Replace:     spec.ConflictPolicy == v1alpha1.ConflictReplace,
		Keep:        true,
	}
}

func selectionOf(images *v1alpha1.ImageSelection) archive.Selection {
	s := archive.Selection{
		BaseName:         images.BaseName,
		Include:          images.Include,
		Exclude:          images.Exclude,
		DigestReferences: ptr.Deref(images.DigestReferences, true),
	}
	for _, r := range images.Rename {
		s.Rename = append(s.Rename, archive.Rename{From: r.From, To: r.To})
	}
	return s
}

func ownerOf(a *v1alpha1.ImageArchive) importer.Owner {
	hash := specHash(&a.Spec)
	if v1alpha1.IsDropIn(a.Name) {
		hash = dropInHash(a)
	}
	return importer.Owner{
		Name: a.Name, UID: string(a.UID), Created: a.CreationTimestamp.Time, SpecHash: hash,
		Deletion: importer.Deletion(a.Spec.DeletionPolicy),
	}
}

// specHash identifies what of a spec decides an import. It is recorded in
// containerd and must stay what it is for a spec of today in every later version, or each node would import
// everything again. So its members are listed here, with a field that is added later left out while it has its
// default value.
func specHash(spec *v1alpha1.ImageArchiveSpec) string {
	wanted := struct {
		Source      v1alpha1.Source
		Digest      string
		IndexDigest string
		Images      v1alpha1.ImageSelection
		Unpack, Pin bool
		Replace     bool
	}{
		spec.Source, spec.Digest, spec.IndexDigest, spec.Images,
		ptr.Deref(spec.Unpack, true), ptr.Deref(spec.Pin, true), spec.ConflictPolicy == v1alpha1.ConflictReplace,
	}
	wanted.Images.DigestReferences = ptr.To(ptr.Deref(spec.Images.DigestReferences, true))
	b, err := json.Marshal(wanted)
	if err != nil {
		panic(err) // strings and booleans always encode
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
