package main

import (
	"bytes"
	"encoding/pem"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootCertificates is Mozilla's list of roots as a PEM file, so that the agent
// can fetch from public servers too. It comes from a Go module, hence is pinned
// and the same wherever the image is built; another file can be mounted over it.
// Roots that are trusted only under conditions are left out: a file cannot say
// conditions.
func rootCertificates() []byte {
	var file bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		// Writes to memory do not fail.
		_ = pem.Encode(&file, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
	}
	return file.Bytes()
}
