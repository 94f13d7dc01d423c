package jobtext

import (
	"testing"
	"time"
)

// A key with one control character was shown as its bytes in hexadecimal, or with the character replaced, so nobody could tell it from another.
func TestKeysAreReadable(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{
		"user 7": "user 7", "né": "né", "a\x00b": `"a\x00b"`, "two\nlines": `"two\nlines"`, " x": `" x"`, "": `""`, `say "hi"`: `"say \"hi\""`, "\x1b[2J": `"\x1b[2J"`,
		"\u202ex": `"\u202ex"`, "\ufffd": "\"\ufffd\"", "\xff\x01": "ff01 (hexadecimal)",
	} {
		if got := Bytes([]byte(key)); got != want {
			t.Errorf("%q is shown as %s, want %s", key, got, want)
		}
	}
	if got := Payload([]byte("{\n\t\"a\": 1\n}")); got != "{\n\t\"a\": 1\n}" {
		t.Errorf("JSON of several lines is shown as %s", got)
	}
}

func TestMeterShowsTheRateOfTheLastSeconds(t *testing.T) {
	t.Parallel()
	var m Meter
	now := time.Unix(1000, 0)
	if r := m.Update(now, 500); r != 0 {
		t.Errorf("the first look gives %v", r)
	}
	for range 20 {
		now = now.Add(time.Second)
		m.Update(now, m.records+1000)
	}
	if m.rate < 990 || m.rate > 1010 {
		t.Errorf("1000 a second give %v", m.rate)
	}
	if r := m.Update(now.Add(time.Second), 10); r != 0 {
		t.Errorf("a job that begins again gives %v", r)
	}
}

// TestTextOfOthersIsCutToALine: an error or a stream's name must not break a table.
func TestTextOfOthersIsCutToALine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"short": "short", "first\nsecond": "first", "0123456789ab": "0123456...", "äöüäöüäöüä": "äöüäöüäöüä"} {
		if got := Shorten(text, 10); got != want {
			t.Errorf("%q is cut to %q, want %q", text, got, want)
		}
	}
	for id, want := range map[string]string{"5f2c81aa-0000-4000-8000-000000000000": "5f2c81aa", "copy users": "copy users"} {
		if got := ShortID(id); got != want {
			t.Errorf("job %q is shown as %q, want %q", id, got, want)
		}
	}
}
