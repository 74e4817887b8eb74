package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// profile takes a profile of the API server's processor while a phase begins. What it returns waits for that, and
// writes how often each kind of request was served, and how long it took.
func (f *fleet) profile(ctx context.Context, phase string) func(metrics) error {
	if f.profiles == "" {
		return func(metrics) error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		profile, err := f.plane.typed.RESTClient().Get().AbsPath("/debug/pprof/profile").Param("seconds", "30").DoRaw(ctx)
		if err != nil {
			done <- fmt.Errorf("profile: %w", err)
			return
		}
		done <- os.WriteFile(filepath.Join(f.profiles, phase+"-apiserver.pprof"), profile, 0o600)
	}()
	return func(m metrics) error {
		text := strings.Join(m.requests(), "\n") + "\n"
		return errors.Join(<-done, os.WriteFile(filepath.Join(f.profiles, phase+"-requests.txt"), []byte(text), 0o600))
	}
}

// requests has a line for each kind of request.
func (m metrics) requests() []string {
	var lines []string
	for series, n := range m {
		if !strings.HasPrefix(series, "apiserver_request_total{") || n == 0 {
			continue
		}
		same := func(other string) bool {
			return !slices.ContainsFunc([]string{"group", "resource", "subresource", "verb"}, func(l string) bool {
				return label(other, l) != label(series, l)
			})
		}
		lines = append(lines, fmt.Sprintf("%-8s %s/%s/%s code %s: %.0f, half of them within %.3f s, 99 %% within %.3f s",
			label(series, "verb"), label(series, "group"), label(series, "resource"), label(series, "subresource"), label(series, "code"), n,
			m.duration(0.5, same), m.duration(0.99, same)))
	}
	slices.Sort(lines)
	return lines
}
