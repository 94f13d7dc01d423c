package streamcmd

import (
	"errors"
	"time"

	"github.com/levada-io/levada/stream"
)

// limitFlag is a time after which something ends, or never.
type limitFlag struct{ d time.Duration }

func (l *limitFlag) String() string {
	switch {
	case l.d < 0:
		return "never"
	case l.d == stream.AtOnce:
		return "0s"
	}
	return l.d.String()
}

func (l *limitFlag) Type() string { return "duration or never" }

func (l *limitFlag) Set(text string) error {
	if text == "never" {
		l.d = stream.Never
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New(`expected a duration such as 90s or 24h, 0 for none at all, or "never"`)
	}
	// Zero means the default to the library, and nothing to who writes 0 on a command line.
	l.d = max(d, stream.AtOnce)
	return nil
}
