package builtin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// layouts are the forms of time that are read without being told, in UTC where they name no zone. Days and months in numbers that could be either
// (03/04/2022) are not among them.
var layouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04:05.999999999Z0700", "2006-01-02T15:04",
	"2006-01-02 15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999 -0700", "2006-01-02 15:04:05.999999999 -07:00",
	"2006-01-02 15:04:05.999999999 -0700 MST", "2006-01-02 15:04:05.999999999 MST", "2006-01-02 15:04", time.DateOnly, "2006-01",
	"2006/01/02 15:04:05.999999999", "2006/01/02 15:04", "2006/01/02",
	time.RFC1123Z, time.RFC1123, time.RFC850, time.RFC822Z, time.RFC822, time.ANSIC, time.UnixDate, time.RubyDate,
	"Jan 2, 2006 15:04:05", "Jan 2, 2006 3:04:05 PM", "Jan 2, 2006", "January 2, 2006 15:04:05", "January 2, 2006 3:04:05 PM", "January 2, 2006",
	"2 Jan 2006 15:04:05", "2 Jan 2006", "2 January 2006 15:04:05", "2 January 2006", "02/Jan/2006:15:04:05 -0700",
}

// readTime reads a time in a layout of Go, or in one of the usual forms if format is empty, as Unix nanoseconds.
func readTime(text, format string) (int64, error) {
	if format != "" {
		t, err := time.Parse(format, text)
		if err != nil {
			return 0, fmt.Errorf("time %s: %w", strconv.Quote(shorten(text)), err)
		}
		return nanoseconds(t)
	}
	text = strings.TrimSpace(text)
	if ns, ok, err := readDigits(text); ok {
		return ns, err
	}
	for _, layout := range layouts {
		if t, err := time.Parse(layout, text); err == nil {
			return nanoseconds(t)
		}
	}
	return 0, fmt.Errorf("time %s has none of the forms that are read without a format: give one", strconv.Quote(shorten(text)))
}

var errTimeRange = errors.New("the time is outside of the years 1678 to 2261")

func nanoseconds(t time.Time) (int64, error) {
	if y := t.Year(); y < 1678 || y > 2261 {
		return 0, errTimeRange
	}
	return t.UnixNano(), nil
}

// readDigits reads numbers: the number of digits gives the unit, since times of our age have 10 in seconds, 13 in
// milliseconds, 16 in microseconds and 19 in nanoseconds.
func readDigits(text string) (ns int64, ok bool, err error) {
	whole, fraction, hasFraction := strings.Cut(text, ".")
	n, parseErr := strconv.ParseInt(whole, 10, 64)
	if parseErr != nil || strings.Trim(whole, "0123456789") != "" || strings.Trim(fraction, "0123456789") != "" {
		return 0, false, nil
	}
	var t time.Time
	switch {
	case len(whole) == 10:
		t = time.Unix(n, 0)
		if hasFraction {
			f, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
			t = t.Add(time.Duration(f))
		}
	case len(whole) == 13:
		t = time.UnixMilli(n)
	case len(whole) == 16:
		t = time.UnixMicro(n)
	case len(whole) == 19:
		return n, true, nil
	case len(whole) == 14 && !hasFraction:
		t, err = time.Parse("20060102150405", whole)
	case len(whole) == 8 && !hasFraction:
		t, err = time.Parse("20060102", whole)
	case len(whole) == 4 && !hasFraction:
		t, err = time.Parse("2006", whole)
	default:
		return 0, true, fmt.Errorf("the number %s is not a time: seconds have 10 digits, milliseconds 13, microseconds 16, nanoseconds 19", shorten(text))
	}
	if err != nil {
		return 0, true, err
	}
	ns, err = nanoseconds(t)
	return ns, true, err
}
