package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/source"
)

// inputFlags are credentials for a URL. Secrets are in files: a command line can be read by everybody.
type inputFlags struct {
	username, passwordFile, tokenFile string
	caFile, certFile, keyFile         string
}

func (f *inputFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.username, "username", "", "user `name` for a URL")
	flags.StringVar(&f.passwordFile, "password-file", "", "`file` with the user's password")
	flags.StringVar(&f.tokenFile, "bearer-token-file", "", "`file` with a bearer token for a URL")
	flags.StringVar(&f.caFile, "ca-file", "", "PEM `file` of the only authorities to trust with an https URL")
	flags.StringVar(&f.certFile, "cert-file", "", "PEM `file` of the client's certificate for an https URL")
	flags.StringVar(&f.keyFile, "key-file", "", "PEM `file` of the client certificate's key")
}

// open opens what the argument FILE|URL|- names.
func (f *inputFlags) open(ctx context.Context, arg string, in io.Reader) (source.Blob, error) {
	if !isURL(arg) && *f != (inputFlags{}) {
		return nil, usagef("credentials are for URLs only, %q is none", arg)
	}
	switch {
	case isURL(arg):
		return f.openURL(ctx, arg)
	case arg == "-":
		if isTerminal(in) {
			return nil, usagef("standard input is a terminal; an archive is expected there")
		}
		return source.OpenStream(in, "standard input"), nil
	}
	return source.OpenFile(ctx, arg)
}

func isURL(arg string) bool { return strings.Contains(arg, "://") }

func (f *inputFlags) openURL(ctx context.Context, url string) (source.Blob, error) {
	// Whoever may run this can reach the same addresses without it.
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

// trimNewline takes away what an editor puts at a file's end.
func trimNewline(b []byte) string { return strings.TrimRight(string(b), "\r\n") }

// isTerminal tells whether somebody sits at the other end of f.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	return hasWindow(file.Fd())
}
