package header

import (
	"encoding/hex"
	"fmt"
	"slices"
	"unicode/utf8"
)

// FieldCut is a trailer that says what is missing from the trailers it is among.
const FieldCut = "levada-trailers-cut"

// Shortened returns trailers, or a response that is only a header, cut to a list of limit bytes: with the status in any case, as much of the message as fits into half
// of the room, and those of the other fields that fit, the status' details first.
func Shortened(s *Set, limit int) *Set {
	out := &Set{Err: s.Err}
	add := func(f Field) {
		out.Fields = append(out.Fields, f)
		out.Size += len(f.Name) + len(f.Value) + fieldRoom
	}
	rest := slices.Clone(s.Fields)
	take := func(name string) (f Field, ok bool) {
		i := slices.IndexFunc(rest, func(f Field) bool { return f.Name == name })
		if i < 0 {
			return f, false
		}
		f = rest[i]
		rest = slices.Delete(rest, i, i+1)
		return f, true
	}
	for _, name := range []string{":status", "content-type", "grpc-status"} {
		if f, ok := take(name); ok && len(f.Value) <= 256 {
			add(f)
		}
	}
	if cut := (Field{Name: FieldCut, Value: fmt.Sprintf("from %d bytes to %d", s.Size, limit)}); out.Size+len(cut.Name)+len(cut.Value)+fieldRoom <= limit/2 {
		add(cut)
	}
	if f, ok := take("grpc-message"); ok {
		if room := (limit-out.Size)/2 - len(f.Name) - fieldRoom; room > 0 {
			f.Value = cutMessage(f.Value, room)
			add(f)
		}
	}
	if f, ok := take("grpc-status-details-bin"); ok {
		rest = slices.Insert(rest, 0, f)
	}
	for _, f := range rest {
		if out.Size+len(f.Name)+len(f.Value)+fieldRoom <= limit {
			add(f)
		}
	}
	out.Err = out.check()
	return out
}

// cutMessage cuts a percent-encoded text to at most n bytes, between two characters.
func cutMessage(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for back := 1; back <= 2; back++ { // no half of an escape
		if n >= back && text[n-back] == '%' {
			n -= back
			break
		}
	}
	for range utf8.UTFMax { // no part of a character
		b, ok := escaped(text[:n])
		if !ok || b < utf8.RuneSelf {
			break
		}
		if n -= 3; utf8.RuneStart(b) {
			break
		}
	}
	return text[:n]
}

// escaped is the byte that an escape at the end of a percent-encoded text stands for.
func escaped(text string) (byte, bool) {
	if len(text) < 3 || text[len(text)-3] != '%' {
		return 0, false
	}
	b, err := hex.DecodeString(text[len(text)-2:])
	return append(b, 0)[0], err == nil
}
