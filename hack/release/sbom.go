package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// rootsModule is what hack/image takes the image's root certificates from. No binary names it.
const rootsModule = "golang.org/x/crypto/x509roots/fallback"

const project = "github.com/tarlift/tarlift"

// A bill is a bill of materials in the making: the release, its binaries and image, and what is in these.
type bill struct {
	version      string
	artifacts    []cdx.Component
	libraries    map[string]cdx.Component // by reference
	dependencies []cdx.Dependency
}

// writeSBOM writes a CycloneDX bill of materials of what the release runs: each binary with the modules that its own
// build information names, and the image with the agents and root certificates in it.
func (r release) writeSBOM(ctx context.Context, output string, agents, tools []string, image string) error {
	b := bill{version: r.version, libraries: map[string]cdx.Component{}}
	inImage, err := b.binaries(agents)
	if err != nil {
		return err
	}
	if _, err := b.binaries(tools); err != nil {
		return err
	}
	roots, err := requiredModule(ctx, rootsModule)
	if err != nil {
		return err
	}
	if _, err := b.artifact(image, cdx.ComponentTypeContainer, append(inImage, b.library(roots))); err != nil {
		return err
	}
	var text bytes.Buffer
	// A version of the format before the newest, since scanners follow slowly.
	if err := cdx.NewBOMEncoder(&text, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).
		EncodeVersion(b.document(r.time), cdx.SpecVersion1_6); err != nil {
		return fmt.Errorf("bill of materials: %w", err)
	}
	return writeFile(output, text.Bytes())
}

// document has no serial number, which would be a random one, and no time but the source's.
func (b *bill) document(at time.Time) *cdx.BOM {
	root := cdx.Component{
		BOMRef: "tarlift@" + b.version, Type: cdx.ComponentTypeApplication, Name: "tarlift", Version: b.version,
		Licenses:           &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
		PackageURL:         purl(project, "v"+b.version),
		ExternalReferences: &[]cdx.ExternalReference{{Type: cdx.ERTypeVCS, URL: "https://" + project}},
	}
	components := b.artifacts
	refs := []string{}
	for _, a := range b.artifacts {
		refs = append(refs, a.BOMRef)
	}
	dependencies := append(b.dependencies, cdx.Dependency{Ref: root.BOMRef, Dependencies: &refs})
	for _, library := range b.libraries {
		components = append(components, library)
		dependencies = append(dependencies, cdx.Dependency{Ref: library.BOMRef})
	}
	slices.SortFunc(components, func(x, y cdx.Component) int { return strings.Compare(x.BOMRef, y.BOMRef) })
	slices.SortFunc(dependencies, func(x, y cdx.Dependency) int { return strings.Compare(x.Ref, y.Ref) })

	document := cdx.NewBOM()
	document.Metadata = &cdx.Metadata{
		Timestamp:  at.Format(time.RFC3339),
		Lifecycles: &[]cdx.Lifecycle{{Phase: cdx.LifecyclePhaseBuild}},
		Supplier:   &cdx.OrganizationalEntity{Name: "Tarlift", URL: &[]string{"https://" + project}},
		Component:  &root,
	}
	document.Components, document.Dependencies = &components, &dependencies
	return document
}

// binaries adds binaries of the release with their modules, and returns their references.
func (b *bill) binaries(paths []string) (refs []string, err error) {
	for _, path := range paths {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("modules of %s: %w", filepath.Base(path), err)
		}
		ref, err := b.artifact(path, cdx.ComponentTypeApplication, b.modules(info))
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// artifact adds a file of the release, and returns its reference.
func (b *bill) artifact(path string, kind cdx.ComponentType, contents []string) (string, error) {
	sum, err := sha256File(path)
	if err != nil {
		return "", err
	}
	name := filepath.Base(path)
	b.artifacts = append(b.artifacts, cdx.Component{
		BOMRef: name, Type: kind, Name: name, Version: b.version,
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sum}},
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}},
	})
	slices.Sort(contents)
	b.dependencies = append(b.dependencies, cdx.Dependency{Ref: name, Dependencies: &contents})
	return name, nil
}

// modules adds what a binary is made of, the standard library included, and returns the references.
func (b *bill) modules(info *debug.BuildInfo) []string {
	// "go1.26.6", or with experiments after a space.
	release, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	refs := []string{b.library(debug.Module{Path: "stdlib", Version: release})}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		refs = append(refs, b.library(*m))
	}
	return refs
}

// library adds a module, and returns its reference. The checksum is go.sum's: the SHA-256 of a listing of the module's
// files, which other generators for Go put into this field too.
func (b *bill) library(m debug.Module) string {
	c := cdx.Component{
		Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, Scope: cdx.ScopeRequired,
		PackageURL: purl(m.Path, m.Version),
	}
	c.BOMRef = c.PackageURL
	if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(sum) > 0 {
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}}
	}
	b.libraries[c.BOMRef] = c
	return c.BOMRef
}

// purl is a module as https://github.com/package-url/purl-spec writes it, by which scanners look up vulnerabilities.
func purl(path, version string) string {
	return "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// requiredModule is a module as go.mod and go.sum pin it.
func requiredModule(ctx context.Context, path string) (debug.Module, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}} {{.Sum}}", path).Output()
	if err != nil {
		return debug.Module{}, fmt.Errorf("go list -m %s: %w", path, err)
	}
	version, sum, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	return debug.Module{Path: path, Version: version, Sum: sum}, nil
}
