package manifest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestServerSettingsAreReadAsTheServerReadsThem: blocks, units, comments and either separator. A parser of lines missed max_payload in braces, and the broker
// then refused messages that the manifest allows.
func TestServerSettingsAreReadAsTheServerReadsThem(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"":                                      0,
		"max_payload: 1048576":                  1 << 20,
		"max_payload 1048576":                   1 << 20,
		"{max_payload: 8MB}":                    8 << 20,
		"max_payload = 8MB # comment":           8 << 20,
		"// comment\nmax_payload: \"2 MiB\"":    2 << 20,
		"max_file_store: 1G\nmax_payload: 1K\n": 1000,
	} {
		s, unknown, err := ParseServerSettings(&text)
		if err != nil || len(unknown) > 0 || s.MaxPayload != want {
			t.Errorf("%q: max_payload %d, want %d; unknown %q, error %v", text, s.MaxPayload, want, unknown, err)
		}
	}
}

// TestServerSettingsThatCannotBeReadAreAnError: none may be ignored, or taken from the machine that happens to read the manifest.
func TestServerSettingsThatCannotBeReadAreAnError(t *testing.T) {
	t.Setenv("SIZE", "1048576")
	for text, want := range map[string]string{
		"max_payload":                          "not a fragment of nats.conf",
		"max_payload:":                         "max_payload is \"\"",
		"max_payload: 65MB":                    "must be from 1 to 67108864",
		"max_payload: -1":                      "must be from 1",
		"max_payload: many":                    "not a number of bytes",
		"max_payload: {a: 1}":                  "not a number of bytes",
		"max_payload: 1\n:":                    "not a fragment of nats.conf",
		"include \"/etc/hostname\"":            "include is not supported",
		"{include \"/etc/hostname\"}":          "include is not supported",
		"max_payload: $SIZE":                   "$SIZE is not supported",
		"max_payload: 1K\nmax_memory_store: x": "max_memory_store is \"x\"",
	} {
		if s, _, err := ParseServerSettings(&text); err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: %+v, error %v, want one with %q", text, s, err, want)
		}
	}
	text := "store_dir: /x\njetstream {max_mem: 1}\nmax_payload: 1K"
	if s, unknown, err := ParseServerSettings(&text); err != nil || !slices.Equal(unknown, []string{"jetstream", "store_dir"}) || s.MaxPayload != 1000 {
		t.Errorf("%+v, unknown %q, %v", s, unknown, err)
	}
}
