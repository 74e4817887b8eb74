package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/reason"
	"github.com/tarlift/tarlift/internal/source"
)

// Input is the flags with credentials for a URL. Secrets are in files, since everybody can read command lines.
type Input struct {
	username, passwordFile, tokenFile string
	caFile, certFile, keyFile         string
}

// Add adds the flags.
func (f *Input) Add(flags *pflag.FlagSet) {
	flags.StringVar(&f.username, "username", "", "user `name` for the URL")
	flags.StringVar(&f.passwordFile, "password-file", "", "`file` with the user's password")
	flags.StringVar(&f.tokenFile, "bearer-token-file", "", "`file` with a bearer token for the URL")
	flags.StringVar(&f.caFile, "ca-file", "",
		"PEM `file` of the certificate authorities to trust for an https URL, in place of this machine's")
	flags.StringVar(&f.certFile, "cert-file", "", "PEM `file` of the client certificate for an https URL")
	flags.StringVar(&f.keyFile, "key-file", "", "PEM `file` of the client certificate's key")
}

// Open opens what the argument FILE|URL|- names.
func (f *Input) Open(ctx context.Context, arg string, in io.Reader) (source.Blob, error) {
	if !IsURL(arg) && *f != (Input{}) {
		return nil, Usagef("credentials are for URLs only, and %q is no URL", arg)
	}
	switch {
	case IsURL(arg):
		return f.openURL(ctx, arg)
	case arg == "-":
		if IsTerminal(in) {
			return nil, Usagef("standard input is a terminal: pipe an archive into the command")
		}
		return source.OpenStream(in, "standard input"), nil //nolint:contextcheck // a stream is read with another
	}
	return source.OpenFile(ctx, arg)
}

// IsURL reports whether an argument is a URL.
func IsURL(arg string) bool { return strings.Contains(arg, "://") }

func (f *Input) openURL(ctx context.Context, url string) (source.Blob, error) {
	// Whoever runs this command can reach the same addresses without it.
	o := source.HTTPOptions{URL: url, Username: f.username, Anywhere: true, Proxy: http.ProxyFromEnvironment}
	for _, secret := range []struct {
		flag, path string
		to         func([]byte)
	}{
		{"password-file", f.passwordFile, func(b []byte) { o.Password = trimNewline(b) }},
		{"bearer-token-file", f.tokenFile, func(b []byte) { o.BearerToken = trimNewline(b) }},
		{"ca-file", f.caFile, func(b []byte) { o.CA = b }},
		{"cert-file", f.certFile, func(b []byte) { o.Cert = b }},
		{"key-file", f.keyFile, func(b []byte) { o.Key = b }},
	} {
		data, err := readSecret(secret.flag, secret.path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, source.ErrDenied)
		}
		secret.to(data)
	}
	return source.OpenHTTP(ctx, o)
}

// trimNewline removes the line break that editors put at the end of a file.
func trimNewline(b []byte) string { return strings.TrimRight(string(b), "\r\n") }

// maxSecretFile bounds a file of credentials in bytes: a chain of certificates has a few thousand.
const maxSecretFile = 1 << 20

// readSecret reads the file that a flag names, or nothing if the flag is not given.
func readSecret(flag, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path) //nolint:gosec // the caller's own choice
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(data) > maxSecretFile {
		err = fmt.Errorf("the file has more than %d bytes", maxSecretFile)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %q: %w", flag, path, err)
	}
	return data, nil
}

// NameArchive names the archive in an error about its content. The errors of sources name their archive already, and
// those of containerd are about no archive.
func NameArchive(blob source.Blob, err error) error {
	switch name, _ := reason.Classify(err); name {
	case reason.ArchiveInvalid, reason.Truncated, reason.DigestMismatch, reason.LimitExceeded, reason.InvalidName,
		reason.NoMatchingPlatform, reason.ContentIncomplete:
		return fmt.Errorf("%s: %w", blob, err)
	}
	return err
}
