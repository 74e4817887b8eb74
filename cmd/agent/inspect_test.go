package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// samples has two images, one of them for two platforms.
func samples() builder.Archive {
	return builder.Archive{Images: []builder.Image{
		image("a.example/app:1", platform("linux/amd64", layer(1, 200_000)), platform("linux/arm64", layer(2, 100_000))),
		image("a.example/tool:2", platform("linux/amd64", layer(3, 50_000))),
	}}
}

// digests gives the targets and platform manifests of an archive in its order.
func digests(t *testing.T, a builder.Archive) (index digest.Digest, all []digest.Digest) {
	t.Helper()
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, img := range b.Images {
		all = append(all, img.Target.Digest)
		for _, p := range img.Platforms {
			all = append(all, p.Manifest.Digest)
		}
	}
	return b.IndexDigest, all
}

func inspectJSON(t *testing.T, in []byte, args ...string) inspection {
	t.Helper()
	o := agent(t, bytes.NewReader(in), append([]string{"inspect", "-o", "json"}, args...)...)
	if o.code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", o.code, o.errOut)
	}
	return decode[inspection](t, o)
}

// The same archive says the same however it is read.
func TestInspectAccess(t *testing.T) {
	plain, zipped := samples(), samples()
	zipped.Compression = builder.Gzip
	data, packed := build(t, plain), build(t, zipped)
	file, packedFile := write(t, "a.tar", data), write(t, "a.tar.gz", packed)
	index, all := digests(t, plain)
	serve := func(ranges bool, data []byte) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !ranges {
				r.Header.Del("Range")
			}
			http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(data))
		}))
		t.Cleanup(srv.Close)
		return srv.URL + "/a.tar"
	}
	for name, tc := range map[string]struct {
		arg         string
		in          []byte
		access      string
		compression string
		size        int64
	}{
		"file":            {file, nil, accessRandom, "none", int64(len(data))},
		"ranges":          {serve(true, data), nil, accessRandom, "none", int64(len(data))},
		"no ranges":       {serve(false, data), nil, accessStream, "none", int64(len(data))},
		"standard input":  {"-", data, accessStream, "none", int64(len(data))},
		"compressed file": {packedFile, nil, accessStream, "gzip", int64(len(packed))},
		"compressed URL":  {serve(true, packed), nil, accessStream, "gzip", int64(len(packed))},
		"compressed pipe": {"-", packed, accessStream, "gzip", int64(len(packed))},
	} {
		t.Run(name, func(t *testing.T) {
			got := inspectJSON(t, tc.in, tc.arg)
			if got.Access != tc.access || (got.Reason == "") != (tc.access == accessRandom) {
				t.Errorf("access %s (%s), want %s", got.Access, got.Reason, tc.access)
			}
			if got.Format != "oci" || got.Compression != tc.compression || got.Size != tc.size || got.IndexDigest != index {
				t.Errorf("%+v", got)
			}
			if len(got.Images) != 2 || len(got.Images[0].Platforms) != 2 || len(got.Images[1].Platforms) != 1 {
				t.Fatalf("images %+v", got.Images)
			}
			app, tool := got.Images[0], got.Images[1]
			if app.Name != "a.example/app:1" || tool.Name != "a.example/tool:2" || app.Problem+tool.Problem != "" {
				t.Errorf("names %+v", got.Images)
			}
			gotDigests := []digest.Digest{
				app.Digest, app.Platforms[0].Digest, app.Platforms[1].Digest, tool.Digest, tool.Platforms[0].Digest,
			}
			for i, d := range gotDigests {
				if d != all[i] {
					t.Errorf("digest %d is %s, want %s", i, d, all[i])
				}
			}
			for _, p := range append(app.Platforms, tool.Platforms...) {
				if p.Missing != 0 || p.Size < 50_000 {
					t.Errorf("platform %+v", p)
				}
			}
		})
	}
}

// Archives that are as they often are.
func TestInspectImages(t *testing.T) {
	partial := samples()
	partial.Images[0].Platforms[1].Absent = true
	bare := samples()
	bare.Names = builder.BareTag
	docker := samples()
	docker.Format = builder.DockerClassic
	for name, tc := range map[string]struct {
		archive builder.Archive
		flags   []string
		check   func(inspection) bool
	}{
		"other platform absent": {partial, nil, func(in inspection) bool {
			p := in.Images[0].Platforms
			return len(p) == 2 && p[0].Missing == 0 && p[1].Missing == 1 && p[1].Platform == "linux/arm64"
		}},
		"bare tags": {bare, nil, func(in inspection) bool {
			return in.Images[0].Name == "" && in.Images[0].Problem != "" && len(in.Images[0].Platforms) == 2
		}},
		"bare tags, base name": {bare, []string{"--base-name", "b.example/x"}, func(in inspection) bool {
			return in.Images[0].Name == "b.example/x:1" && in.Images[1].Name == "b.example/x:2" && in.Images[0].Problem == ""
		}},
		"docker": {docker, nil, func(in inspection) bool {
			return in.Format == "docker" && in.Images[1].Name == "a.example/tool:2" && in.Images[1].Platforms[0].Missing == 0
		}},
	} {
		t.Run(name, func(t *testing.T) {
			data := build(t, tc.archive)
			for _, arg := range []string{write(t, "a.tar", data), "-"} {
				if got := inspectJSON(t, data, append(tc.flags, arg)...); !tc.check(got) {
					text, _ := json.Marshal(got)
					t.Errorf("%s: %s", arg, text)
				}
			}
		})
	}
}

func TestInspectText(t *testing.T) {
	partial := samples()
	partial.Images[0].Platforms[1].Absent = true
	index, all := digests(t, partial)
	o := agent(t, nil, "inspect", write(t, "a.tar", build(t, partial)))
	if o.code != cli.ExitOK || o.errOut != "" {
		t.Fatalf("exit code %d: %s", o.code, o.errOut)
	}
	for _, want := range []string{
		"random", "oci", index.String(), "a.example/app:1", "linux/amd64", "linux/arm64", "not in the archive",
		"a.example/tool:2", all[0].String(), all[1].String(),
	} {
		if !strings.Contains(o.out, want) {
			t.Errorf("%q is missing in:\n%s", want, o.out)
		}
	}
}

// Text from an archive cannot do anything to the terminal.
func TestInspectTextIsPrintable(t *testing.T) {
	evil := "linux(1\x1b[31m\n2)/amd64"
	in := &inspection{
		Source: evil, Images: []inspectedName{{Name: evil, Problem: evil, Platforms: []inspectedPlatform{{Platform: evil}}}},
		DryRun: importer.DryRun{Plan: &importer.Plan{Images: []importer.PlannedImage{{Name: evil, Platform: evil}}}},
	}
	var clean, out bytes.Buffer
	if err := printInspection(&out, in, importer.Options{}); err != nil {
		t.Fatal(err)
	}
	in.Source, in.Plan.Images[0] = "", importer.PlannedImage{}
	in.Images[0] = inspectedName{Problem: "x", Platforms: make([]inspectedPlatform, 1)}
	if err := printInspection(&clean, in, importer.Options{}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != strings.Count(clean.String(), "\n") {
		t.Errorf("printed: %q", out.String())
	}
}

// What is no archive, or cannot be had, is told with the reason that conditions have.
func TestInspectFailures(t *testing.T) {
	data := build(t, samples())
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/login" {
			http.NotFound(w, r)
			return
		}
		w.Write([]byte("<!DOCTYPE html><html><body>" + strings.Repeat("<p>please sign in</p>", 100) + "</body></html>"))
	}))
	defer page.Close()
	for name, tc := range map[string]struct {
		arg, reason string
	}{
		"no file":       {"/nonexistent/a.tar", "SourceNotFound"},
		"404":           {page.URL + "/a.tar", "SourceNotFound"},
		"HTML":          {page.URL + "/login", "ArchiveInvalid"},
		"truncated":     {write(t, "a.tar", data[:len(data)/2]), "Truncated"},
		"empty":         {write(t, "a.tar", nil), "ArchiveInvalid"},
		"directory":     {os.TempDir(), "SourceDenied"},
		"scheme":        {"ftp://127.0.0.1/a.tar", "SourceDenied"},
		"control chars": {"/nonexistent/\x1b[31m\n", "SourceNotFound"},
	} {
		t.Run(name, func(t *testing.T) {
			wantFailure(t, agent(t, nil, "inspect", "-o", "json", tc.arg), cli.ExitFailed, tc.reason)
		})
	}
}
