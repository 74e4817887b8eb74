package source_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

func TestHTTPChanged(t *testing.T) {
	const olderDate = "Wed, 01 Jul 2020 10:00:00 GMT"
	data := randomBytes(200_000)
	serve := func(header, value string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(header, value)
			modified, err := http.ParseTime(value)
			if err != nil {
				modified = time.Time{}
			}
			http.ServeContent(w, r, "", modified, strings.NewReader(string(data)))
		}
	}
	// whole ignores every condition and every range.
	whole := func(header, value string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(header, value)
			w.Write(data)
		}
	}
	long := `"` + strings.Repeat("x", source.MaxValidator) + `"`
	for _, test := range []struct {
		why           string
		before, after func(http.ResponseWriter, *http.Request)
		want          bool
	}{
		{"the same ETag", serve("ETag", `"1"`), serve("ETag", `"1"`), false},
		{"another ETag", serve("ETag", `"1"`), serve("ETag", `"2"`), true},
		{"the same date", serve("Last-Modified", lastModified), serve("Last-Modified", lastModified), false},
		{"a later date", serve("Last-Modified", olderDate), serve("Last-Modified", lastModified), true},
		{"an older date: a server answers that it was not modified since", serve("Last-Modified", lastModified), serve("Last-Modified", olderDate), true},
		{"a weak ETag is enough", whole("ETag", `W/"1"`), whole("ETag", `W/"2"`), true},
		{"the same weak one", whole("ETag", `W/"1"`), whole("ETag", `W/"1"`), false},
		{"an ETag became weak", whole("ETag", `"1"`), whole("ETag", `W/"1"`), false},
		{"conditions are ignored, and nothing has changed", whole("ETag", `"1"`), whole("ETag", `"1"`), false},
		{"a long ETag", serve("ETag", long), serve("ETag", long), false},
		{"a long ETag, and it is another", serve("ETag", long), serve("ETag", `"y`+long[1:]), true},
		{"no validator: nobody can tell", whole("X", ""), whole("X", ""), false},
		{"a validator where there was none", whole("X", ""), serve("ETag", `"1"`), true},
		{"none where there was one says nothing of the bytes", serve("ETag", `"1"`), whole("X", ""), false},
	} {
		t.Run(test.why, func(t *testing.T) {
			answer := test.before
			srv := newServer(t, nil, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				answer(w, r)
				return true
			})
			b := openHTTP(t, quick(srv.URL))
			validator := b.Validator()
			if len(validator) > source.MaxValidator {
				t.Errorf("a validator of %d bytes", len(validator))
			}
			answer = test.after
			before := len(srv.seen())
			changed, err := source.HTTPChanged(t.Context(), quick(srv.URL), validator)
			if err != nil || changed != test.want {
				t.Errorf("changed %v (%v), want %v", changed, err, test.want)
			}
			asked := srv.seen()[before:]
			if len(asked) != 1 || asked[0].Method != http.MethodGet || asked[0].Header.Get("Range") != "bytes=0-0" {
				t.Errorf("%d requests, %+v", len(asked), asked[0])
			}
		})
	}
}

// A server that speaks of conditions need not send a byte.
func TestHTTPChangedIsConditional(t *testing.T) {
	srv := newServer(t, randomBytes(1000), nil)
	b := openHTTP(t, quick(srv.URL))
	before := srv.sent.Load()
	if changed, err := source.HTTPChanged(t.Context(), quick(srv.URL), b.Validator()); changed || err != nil {
		t.Errorf("changed %v: %v", changed, err)
	}
	if n := srv.sent.Load() - before; n != 0 {
		t.Errorf("%d bytes were sent", n)
	}
}

// Nothing is said about bytes that nobody could ask for.
func TestHTTPChangedErrors(t *testing.T) {
	for code, want := range map[int]error{
		404: source.ErrNotFound, 403: source.ErrDenied, 500: source.ErrUnavailable, 503: source.ErrUnavailable, 418: source.ErrUnavailable,
	} {
		srv := newServer(t, nil, func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			return true
		})
		if changed, err := source.HTTPChanged(t.Context(), quick(srv.URL), strongETag); changed || !errors.Is(err, want) {
			t.Errorf("%d: changed %v, %v, want %v", code, changed, err, want)
		}
		if n := len(srv.seen()); n != 1 {
			t.Errorf("%d: %d requests, want one: there is a later look", code, n)
		}
	}
	if _, err := source.HTTPChanged(t.Context(), source.HTTPOptions{URL: "http://127.0.0.1:1/"}, strongETag); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("an address that is not allowed: %v", err)
	}
}

// A file is another when its size or its time of modification is; all else changes by itself: FAT makes up inodes at each
// mount.
func TestChangedUnder(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, filepath.Join(dir, "a.tar"), []byte("one"))
	day := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(path string, when time.Time) {
		t.Helper()
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	at(path, day)
	b, err := source.OpenUnder(t.Context(), dir, "a.tar")
	if err != nil {
		t.Fatal(err)
	}
	validator := b.Validator()
	b.Close()
	for _, tc := range []struct {
		why    string
		text   string
		when   time.Time
		change bool
	}{
		{"a copy with its time, as after a remount: another inode", "one", day, false},
		{"another time", "one", day.Add(2 * time.Second), true},
		{"another size", "three", day, true},
	} {
		at(writeFile(t, path+".new", []byte(tc.text)), tc.when)
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		if changed, err := source.ChangedUnder(t.Context(), dir, "a.tar", validator); changed != tc.change || err != nil {
			t.Errorf("%s: %v, %v", tc.why, changed, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if changed, err := source.ChangedUnder(t.Context(), dir, "a.tar", validator); changed || !errors.Is(err, source.ErrNotFound) {
		t.Errorf("removed: %v, %v", changed, err)
	}
}
