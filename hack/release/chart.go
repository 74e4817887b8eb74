package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// packageChart has helm check and package the chart, as this version and for the image of this version.
func (r release) packageChart(ctx context.Context, output string) (err error) {
	if err := command(ctx, helm, "lint", "--strict", "--quiet", chart); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "chart-*")
	if err != nil {
		return fmt.Errorf("directory of the chart: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := command(ctx, helm, "package", chart, "--version", r.version, "--app-version", r.version, "-d", dir); err != nil {
		return err
	}
	in, err := os.Open(filepath.Join(dir, filepath.Base(output)))
	if err != nil {
		return fmt.Errorf("helm's package: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(output, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create package: %w", err)
	}
	err = normalize(out, in, r.time)
	if err = errors.Join(err, out.Chmod(0o644), out.Close()); err != nil {
		return fmt.Errorf("package of the chart: %w", err)
	}
	return nil
}

// normalize copies a chart's package without what depends on when and where helm made it. It keeps the members and
// their order, and the gzip header by which helm marks its packages.
func normalize(out io.Writer, in io.Reader, at time.Time) error {
	unzip, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("helm's package: %w", err)
	}
	zip := gzip.NewWriter(out)
	zip.Extra, zip.Comment = unzip.Extra, unzip.Comment
	members, archive := tar.NewReader(unzip), tar.NewWriter(zip)
	for {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("helm's package: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("helm's package: %s: type %q is no file's", h.Name, h.Typeflag)
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: h.Name, Size: h.Size, Mode: 0o644, ModTime: at}); err != nil {
			return fmt.Errorf("write %s: %w", h.Name, err)
		}
		if _, err := io.CopyN(archive, members, h.Size); err != nil {
			return fmt.Errorf("copy %s: %w", h.Name, err)
		}
	}
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		return fmt.Errorf("end of the package: %w", err)
	}
	return nil
}
