package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"
	"pgregory.net/rapid"
)

// FuzzFrame reads bytes as frames, and compares with what golang.org/x/net makes of them.
func FuzzFrame(f *testing.F) {
	f.Add(AppendData(nil, 1, []byte("hello"), true))
	f.Add(AppendSettings(nil, Setting{InitialWindowSize, 1}, Setting{MaxFrameSize, 16384}))
	f.Add([]byte{0, 0, 3, 0, Padded, 0, 0, 0, 1, 2, 0, 0})
	f.Add([]byte{0, 0, 1, 0, Padded, 0, 0, 0, 1, 0})
	f.Add([]byte{0, 0, 0, 0, Padded, 0, 0, 0, 1})
	f.Add(append(AppendHeader(nil, 6, Headers, Padded|Prioritized|EndHeaders, 3), 0, 0, 0, 0, 1, 9))
	f.Fuzz(func(t *testing.T, b []byte) {
		theirs := http2.NewFramer(nil, bytes.NewReader(b))
		theirs.AllowIllegalReads = true
		theirs.SetMaxReadFrameSize(1<<24 - 1)
		for len(b) >= HeaderLen {
			h := ParseHeader(b)
			if len(b) < HeaderLen+h.Length {
				return
			}
			payload := b[HeaderLen : HeaderLen+h.Length]
			b = b[HeaderLen+h.Length:]
			other, err := theirs.ReadFrame()
			if err != nil {
				var broken http2.ConnectionError
				if h.Type == Data && h.Stream != 0 && errors.As(err, &broken) {
					if _, ours := Unpad(h, payload); ours == nil {
						t.Fatalf("DATA % x: they say %v, we take it", payload, err)
					}
				}
				if h.Type != Settings || h.Has(Ack) || h.Stream != 0 {
					return
				}
				if ours := EachSetting(payload, func(Setting) error { return nil }); ours == nil && !errors.Is(err, io.EOF) {
					t.Fatalf("SETTINGS % x: they say %v, we take it", payload, err)
				}
				return
			}
			their := other.Header()
			if int(their.Length) != h.Length || uint8(their.Type) != uint8(h.Type) || uint8(their.Flags) != h.Flags || their.StreamID != h.Stream {
				t.Fatalf("%+v, they have %v", h, their)
			}
			switch other := other.(type) {
			case *http2.DataFrame:
				p, err := Unpad(h, payload)
				if err != nil || !bytes.Equal(p, other.Data()) {
					t.Fatalf("DATA % x: %q, %v; they have %q", payload, p, err, other.Data())
				}
			case *http2.HeadersFrame:
				p, err := Unpad(h, payload)
				if h.Has(Prioritized) && err == nil {
					if len(p) < 5 {
						t.Fatalf("HEADERS % x: they take it", payload)
					}
					p = p[5:]
				}
				if err != nil || !bytes.Equal(p, other.HeaderBlockFragment()) {
					t.Fatalf("HEADERS % x: % x, %v; they have % x", payload, p, err, other.HeaderBlockFragment())
				}
			case *http2.SettingsFrame:
				if h.Has(Ack) {
					continue
				}
				var ours, theirs []Setting
				err := EachSetting(payload, func(s Setting) error { ours = append(ours, s); return nil })
				theirErr := other.ForeachSetting(func(s http2.Setting) error {
					if err := s.Valid(); err != nil {
						return err
					}
					theirs = append(theirs, Setting{SettingID(s.ID), s.Val})
					return nil
				})
				// Of extended CONNECT (8) they have an opinion, we ignore it.
				for _, s := range ours {
					if s.ID == 8 {
						return
					}
				}
				if (err == nil) != (theirErr == nil) || len(ours) != len(theirs) {
					t.Fatalf("SETTINGS % x: %v %v, they have %v %v", payload, ours, err, theirs, theirErr)
				}
				for i := range ours {
					if ours[i] != theirs[i] {
						t.Fatalf("SETTINGS % x: %v, they have %v", payload, ours, theirs)
					}
				}
			}
		}
	})
}

// TestAppend has golang.org/x/net read what is written.
func TestAppend(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		stream := rapid.Uint32Range(1, MaxStream).Draw(r, "stream")
		p := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(r, "payload")
		end := rapid.Bool().Draw(r, "end")
		maxFrame := rapid.IntRange(1, 100).Draw(r, "largest frame")
		code := rapid.Uint32().Draw(r, "code")
		n := rapid.Uint32Range(1, MaxWindow).Draw(r, "n")
		var b []byte
		b = AppendData(b, stream, p, end)
		b = AppendHeaders(b, stream, p, end, maxFrame)
		b = AppendReset(b, stream, Code(code))
		b = AppendSettings(b, Setting{InitialWindowSize, n}, Setting{MaxConcurrentStreams, code})
		b = AppendSettingsAck(b)
		b = AppendPing(b, end, uint64(n)<<20|uint64(code))
		b = AppendGoAway(b, stream, Code(code), string(p))
		b = AppendWindowUpdate(b, 0, int(n))
		b = AppendWindowUpdate(b, stream, int(n))
		theirs := http2.NewFramer(nil, bytes.NewReader(b))
		read := func() http2.Frame {
			f, err := theirs.ReadFrame()
			if err != nil {
				r.Fatal(err)
			}
			return f
		}
		if f := read().(*http2.DataFrame); f.StreamID != stream || !bytes.Equal(f.Data(), p) || f.StreamEnded() != end {
			r.Fatalf("%v", f)
		}
		first := read().(*http2.HeadersFrame)
		block := bytes.Clone(first.HeaderBlockFragment())
		if first.StreamID != stream || first.StreamEnded() != end {
			r.Fatalf("%v", first)
		}
		for ended := first.HeadersEnded(); !ended; {
			f := read().(*http2.ContinuationFrame)
			if f.Length > uint32(maxFrame) {
				r.Fatalf("a piece of %d bytes where %d is the largest", f.Length, maxFrame)
			}
			block = append(block, f.HeaderBlockFragment()...)
			ended = f.HeadersEnded()
		}
		if !bytes.Equal(block, p) {
			r.Fatal("another header block")
		}
		if f := read().(*http2.RSTStreamFrame); f.StreamID != stream || uint32(f.ErrCode) != code {
			r.Fatalf("%v", f)
		}
		settings := read().(*http2.SettingsFrame)
		if v, _ := settings.Value(http2.SettingInitialWindowSize); v != n {
			r.Fatalf("%v", settings)
		}
		if v, ok := settings.Value(http2.SettingMaxConcurrentStreams); v != code || !ok || settings.IsAck() {
			r.Fatalf("%v", settings)
		}
		if f := read().(*http2.SettingsFrame); !f.IsAck() {
			r.Fatalf("%v", f)
		}
		if f := read().(*http2.PingFrame); f.IsAck() != end || binary.BigEndian.Uint64(f.Data[:]) != uint64(n)<<20|uint64(code) {
			r.Fatalf("%v", f)
		}
		if f := read().(*http2.GoAwayFrame); f.LastStreamID != stream || uint32(f.ErrCode) != code || !bytes.Equal(f.DebugData(), p) {
			r.Fatalf("%v", f)
		}
		if f := read().(*http2.WindowUpdateFrame); f.StreamID != 0 || f.Increment != n {
			r.Fatalf("%v", f)
		}
		if f := read().(*http2.WindowUpdateFrame); f.StreamID != stream || f.Increment != n {
			r.Fatalf("%v", f)
		}
	})
}

func TestCodes(t *testing.T) {
	for c := NoError; c <= HTTP11Required; c++ {
		if c.String() != http2.ErrCode(c).String() {
			t.Errorf("%d is %s, they say %s", c, c, http2.ErrCode(c))
		}
	}
	if got := Code(99).String(); got != "error code 99" {
		t.Error(got)
	}
}
