package condition

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestErrorText(t *testing.T) {
	for _, test := range []struct{ why, in, want string }{
		{"plain", "get x: not found", "get x: not found"},
		{"line breaks and escapes", "a\nb\r\x1b[31mc\x00", "a b  [31mc "},
		{"line separators", "a\u2028b\u2029c", "a b c"},
		{"invalid UTF-8", "a\xff\xfeb", "a\uFFFDb"},
		{"a query", `Get "https://s3/b/a.tar?X-Sig=secret&y": refused`, `Get "https://s3/b/a.tar": refused`},
		{"a fragment", "http://a/b#secret end", "http://a/b end"},
		{"user and password", "http://user:pw@a/b and https://u@c", "http://a/b and https://c"},
		{"several URLs", "http://a/?x=1 http://b/?y=2", "http://a/ http://b/"},
	} {
		if got := ErrorText(errors.New(test.in)); got != test.want {
			t.Errorf("%s: %q, want %q", test.why, got, test.want)
		}
	}
	long := ErrorText(errors.New(strings.Repeat("ü", MaxText)))
	if len(long) > MaxText || !utf8.ValidString(long) || !strings.HasSuffix(long, "ü…") {
		t.Errorf("%d bytes, ending in %q", len(long), long[len(long)-8:])
	}
}

func TestDisplaySize(t *testing.T) {
	for n, want := range map[int64]string{-1: "", 0: "", 1: "1B", 1023: "1023B", 45 << 20: "45MiB", 3 << 29: "1.5GiB"} {
		if got := DisplaySize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
