// Package metadata reads and writes the user metadata of a message, which travels encoded.
package metadata

import (
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Groups are the user metadata of a message, by group and key. Encoded metadata is the fields 2 (system) and 3 (user) of the contract's Metadata: maps of
// KeyValueGroup, which is a map of bytes.
type Groups map[string]map[string][]byte

const userField = 3

// ErrMalformed means that metadata cannot be decoded.
var ErrMalformed = errors.New("the metadata of the message is malformed")

// Get returns the value of a key, nil if there is none.
func (g Groups) Get(group, key string) []byte { return g[group][key] }

// Set sets the value of a key.
func (g Groups) Set(group, key string, value []byte) {
	if g[group] == nil {
		g[group] = map[string][]byte{}
	}
	g[group][key] = value
}

// Names are the names of the groups, sorted.
func (g Groups) Names() []string { return slices.Sorted(maps.Keys(g)) }

// User decodes the user metadata; of two entries with one name the last counts, as protobuf has it.
func User(metadata []byte) (Groups, error) {
	g := Groups{}
	err := visit(metadata, func(field protowire.Number, entry []byte) error {
		if field != userField {
			return nil
		}
		name, group, err := mapEntry(entry)
		if err != nil {
			return err
		}
		values := map[string][]byte{}
		g[string(name)] = values
		return visit(group, func(field protowire.Number, pair []byte) error {
			if field != 1 {
				return nil
			}
			key, value, err := mapEntry(pair)
			values[string(key)] = value
			return err
		})
	})
	return g, err
}

// WithUser replaces the user metadata, in sorted order, so that the same message is always the same bytes. metadata is not changed.
func WithUser(metadata []byte, user Groups) []byte {
	var b []byte
	for rest := metadata; len(rest) > 0; {
		field, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			break
		}
		m := protowire.ConsumeFieldValue(field, kind, rest[n:])
		if m < 0 {
			break
		}
		if field != userField {
			b = append(b, rest[:n+m]...)
		}
		rest = rest[n+m:]
	}
	for _, name := range user.Names() {
		var group []byte
		for _, key := range slices.Sorted(maps.Keys(user[name])) {
			group = appendBytes(group, 1, appendBytes(appendBytes(nil, 1, []byte(key)), 2, user[name][key]))
		}
		b = appendBytes(b, userField, appendBytes(appendBytes(nil, 1, []byte(name)), 2, group))
	}
	return b
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func mapEntry(b []byte) (key, value []byte, err error) {
	err = visit(b, func(field protowire.Number, v []byte) error {
		switch field {
		case 1:
			key = v
		case 2:
			value = v
		}
		return nil
	})
	return key, value, err
}

// visit calls f with each length-delimited field.
func visit(b []byte, f func(field protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ErrMalformed
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
				return ErrMalformed
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return ErrMalformed
		}
		if err := f(field, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
