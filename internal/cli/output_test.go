package cli

import "testing"

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                     "plain",
		"größer 日本":                 "größer 日本",
		"two\nlines":                "two; lines",
		"\x1b[31mred":               `\x1b[31mred`,
		"a\x00b\r":                  `a\x00b\r`,
		"\xff\xfe":                  `\xff\xfe`,
		"right\u202eto left":        `right\u202eto left`, // would show the rest backwards
		"line\u2028separator":       `line\u2028separator`,
		"zero\u200bwidth":           `zero\u200bwidth`,
		"quote ' and \" stay":       "quote ' and \" stay",
		"replacement \ufffd itself": "replacement \ufffd itself",
	} {
		if got := OneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
