package stream

import (
	"fmt"
	"reflect"
	"time"
)

// bound is a field of a configuration that must not be negative. Zero means the default.
type bound struct {
	field string
	value any // int, count or time.Duration
}

// count is a number of which None is a value too.
type count int

// checkLimits returns an error that names the first field that is negative.
func checkLimits(config string, limits ...bound) error {
	for _, l := range limits {
		negative, instead := false, "0 is the default"
		switch v := l.value.(type) {
		case count:
			negative, instead = v < 0 && int(v) != None, "stream.None allows none, 0 is the default"
		case int:
			negative = v < 0
		case time.Duration:
			negative = v < 0
		}
		if negative {
			return fmt.Errorf("%s.%s is %v, but must not be negative; %s", config, l.field, l.value, instead)
		}
	}
	return nil
}

func checkBackoff(config string, b Backoff) error {
	if err := checkLimits(config, bound{"Retry.Min", b.Min}, bound{"Retry.Max", b.Max}); err != nil {
		return err
	}
	if b.Max > 0 && b.Max < b.Min {
		return fmt.Errorf("%s.Retry.Max is %v, but must not be less than Retry.Min, which is %v", config, b.Max, b.Min)
	}
	return nil
}

// checkHandle refuses what could only fail later, and less clearly: an empty name, and a nil sink or source, also one in a non-nil interface.
func checkHandle(of, what, stream string, handler any) error {
	if stream == "" {
		return fmt.Errorf("%s.Handle: the stream's name is empty: it is the name that jobs have in Job.Stream", of)
	}
	v := reflect.ValueOf(handler)
	if !v.IsValid() || (v.Kind() == reflect.Pointer || v.Kind() == reflect.Func || v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.IsNil() {
		return fmt.Errorf("%s.Handle(%q): the %s is nil", of, stream, what)
	}
	return nil
}
