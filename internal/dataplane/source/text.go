package source

import (
	"context"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/flow"
)

// ValidText returns a reader whose messages have no key and no header that is not UTF-8: what reaches a function as a string of protobuf. Such a header is
// left out, and dropped called with its name; such a key is escaped. Ids are escaped where they are made (flow.RootID).
// A reader that takes acknowledgements of parts still does.
func ValidText(r Reader, dropped func(header string)) Reader {
	v := validText{r, dropped}
	if parts, ok := r.(PartAcker); ok {
		return struct {
			validText
			PartAcker
		}{v, parts}
	}
	return v
}

type validText struct {
	Reader
	dropped func(header string)
}

// Read implements Reader.
func (v validText) Read(ctx context.Context, limit int) (*Batch, error) {
	b, err := v.Reader.Read(ctx, limit)
	if err != nil {
		return b, err
	}
	for i := range b.Messages {
		m := &b.Messages[i]
		if len(m.Headers) > 0 {
			m.Headers = m.Headers.ValidText(v.dropped)
		}
		for _, key := range m.Keys {
			if !utf8.ValidString(key) {
				m.Keys = escaped(m.Keys)
				break
			}
		}
	}
	return b, nil
}

func escaped(keys []string) []string {
	all := make([]string, len(keys))
	for i, key := range keys {
		all[i] = flow.EscapeText(key)
	}
	return all
}
