package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
)

// MaxValidator bounds Blob.Validator in bytes, so that it can be kept where there is little room. ETags are short: a
// checksum in quotes. Longer ones are replaced by their digest.
const MaxValidator = 128

// HTTPChanged tells whether OpenHTTP would give other bytes than those of this validator. It sends one request, for a
// single byte, with the validator as its condition. It is not a HEAD: a presigned URL allows one method only.
//
// A server that tells no validator any more says nothing of its bytes: that is no change.
func HTTPChanged(ctx context.Context, opts HTTPOptions, validator string) (bool, error) {
	b, err := newHTTPBlob(ctx, opts)
	if err != nil {
		return false, err
	}
	defer b.Close()
	header := http.Header{}
	header.Set("Range", byteRange{0, 1}.String())
	if name := conditionFor(validator); name != "" {
		header.Set(name, validator)
	}
	res, err := b.send(ctx, header)
	if err != nil {
		return false, b.errorf(err)
	}
	defer res.Close()
	if res.StatusCode != http.StatusNotModified {
		if err := statusError(res.Response); err != nil {
			return false, b.errorf(err)
		}
	}
	// Even when it was not modified: a server may say so of every older date, and the one that comes along tells.
	version := versionOf(res.Header)
	return version != "" && strong(version) != strong(validator), nil
}

// strong is a validator for the weak comparison of RFC 9110, section 8.8.3.2: servers make an ETag weak and strong again.
func strong(validator string) string { return strings.TrimPrefix(validator, "W/") }

// conditionFor is the header that makes a request conditional on a validator (RFC 9110, section 13.1), empty for none.
func conditionFor(validator string) string {
	if strings.HasSuffix(validator, `"`) {
		return "If-None-Match"
	}
	if _, err := http.ParseTime(validator); err == nil {
		return "If-Modified-Since"
	}
	return ""
}

// versionOf tells an answer's bytes from others as Blob.Validator does. Unlike for ranges, a weak ETag will do.
func versionOf(h http.Header) string {
	v := validatorOf(h)
	if weak := h.Get("ETag"); v.header != "ETag" && strings.HasPrefix(weak, `W/"`) && strings.HasSuffix(weak, `"`) {
		v.value = weak
	}
	printable := strings.IndexFunc(v.value, func(r rune) bool { return r < ' ' || r > '~' }) < 0
	if len(v.value) <= MaxValidator && printable {
		return v.value
	}
	sum := sha256.Sum256([]byte(v.value))
	return "sha256:" + hex.EncodeToString(sum[:])
}
