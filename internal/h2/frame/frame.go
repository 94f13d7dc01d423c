// Package frame reads and writes HTTP/2 frames as bytes, without allocating: RFC 9113 sections 4 and 6.
package frame

import (
	"encoding/binary"
	"fmt"
)

// HeaderLen is the length of what stands before each frame's payload.
const HeaderLen = 9

// Preface is what a client sends first.
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// What holds until a SETTINGS frame says otherwise.
const (
	DefaultWindow    = 65535
	DefaultMaxFrame  = 16384
	MaxWindow        = 1<<31 - 1
	MaxStream        = 1<<31 - 1
	DefaultTableSize = 4096
)

// Type is a frame's type. Those that are not named here are to be ignored.
type Type uint8

// The types.
const (
	Data Type = iota
	Headers
	Priority
	Reset
	Settings
	PushPromise
	Ping
	GoAway
	WindowUpdate
	Continuation
)

// Flags of frames. Ack is that of SETTINGS and PING.
const (
	EndStream   = 0x1
	Ack         = 0x1
	EndHeaders  = 0x4
	Padded      = 0x8
	Prioritized = 0x20
)

// Header is what stands before a frame's payload.
type Header struct {
	Length int
	Stream uint32
	Type   Type
	Flags  uint8
}

// Has reports whether the flag is set.
func (h Header) Has(flag uint8) bool { return h.Flags&flag != 0 }

// ParseHeader reads the header at the beginning of b, which has at least HeaderLen bytes.
func ParseHeader(b []byte) Header {
	_ = b[8]
	return Header{
		Length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		Type:   Type(b[3]), Flags: b[4],
		Stream: binary.BigEndian.Uint32(b[5:]) & MaxStream,
	}
}

// AppendHeader appends a frame's header.
func AppendHeader(b []byte, length int, t Type, flags uint8, stream uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(t), flags, byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

// AppendData appends a DATA frame.
func AppendData(b []byte, stream uint32, p []byte, end bool) []byte {
	return append(AppendHeader(b, len(p), Data, endFlag(end), stream), p...)
}

// AppendHeaders appends a header block: a HEADERS frame, and as many CONTINUATION frames as it takes.
func AppendHeaders(b []byte, stream uint32, block []byte, end bool, maxFrame int) []byte {
	t, flags := Headers, endFlag(end)
	for len(block) > maxFrame {
		b = append(AppendHeader(b, maxFrame, t, flags, stream), block[:maxFrame]...)
		block, t, flags = block[maxFrame:], Continuation, 0
	}
	return append(AppendHeader(b, len(block), t, flags|EndHeaders, stream), block...)
}

func endFlag(end bool) uint8 {
	if end {
		return EndStream
	}
	return 0
}

// AppendReset appends a RST_STREAM frame.
func AppendReset(b []byte, stream uint32, code Code) []byte {
	return binary.BigEndian.AppendUint32(AppendHeader(b, 4, Reset, 0, stream), uint32(code))
}

// AppendWindowUpdate appends a WINDOW_UPDATE frame; stream 0 is the connection.
func AppendWindowUpdate(b []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(AppendHeader(b, 4, WindowUpdate, 0, stream), uint32(n))
}

// AppendPing appends a PING frame with 8 bytes of data.
func AppendPing(b []byte, ack bool, data uint64) []byte {
	flags := uint8(0)
	if ack {
		flags = Ack
	}
	return binary.BigEndian.AppendUint64(AppendHeader(b, 8, Ping, flags, 0), data)
}

// AppendGoAway appends a GOAWAY frame.
func AppendGoAway(b []byte, last uint32, code Code, text string) []byte {
	b = AppendHeader(b, 8+len(text), GoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	return append(binary.BigEndian.AppendUint32(b, uint32(code)), text...)
}

// Setting is one of a SETTINGS frame.
type Setting struct {
	ID    SettingID
	Value uint32
}

// SettingID names a setting.
type SettingID uint16

// The settings.
const (
	HeaderTableSize      SettingID = 1
	EnablePush           SettingID = 2
	MaxConcurrentStreams SettingID = 3
	InitialWindowSize    SettingID = 4
	MaxFrameSize         SettingID = 5
	MaxHeaderListSize    SettingID = 6
)

const settingLen = 6

// AppendSettings appends a SETTINGS frame.
func AppendSettings(b []byte, settings ...Setting) []byte {
	b = AppendHeader(b, settingLen*len(settings), Settings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Value)
	}
	return b
}

// AppendSettingsAck appends the acknowledgement of a SETTINGS frame.
func AppendSettingsAck(b []byte) []byte { return AppendHeader(b, 0, Settings, Ack, 0) }

// EachSetting calls use with each setting of a SETTINGS frame's payload, until it fails.
func EachSetting(p []byte, use func(Setting) error) error {
	if len(p)%settingLen != 0 {
		return Error{FrameSizeError, "a SETTINGS frame whose length is not a multiple of 6"}
	}
	for ; len(p) > 0; p = p[settingLen:] {
		s := Setting{SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])}
		switch {
		case s.ID == EnablePush && s.Value > 1:
			return Error{ProtocolError, "SETTINGS_ENABLE_PUSH that is neither 0 nor 1"}
		case s.ID == InitialWindowSize && s.Value > MaxWindow:
			return Error{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1"}
		case s.ID == MaxFrameSize && (s.Value < DefaultMaxFrame || s.Value > 1<<24-1):
			return Error{ProtocolError, "SETTINGS_MAX_FRAME_SIZE outside of 2^14 to 2^24-1"}
		}
		if err := use(s); err != nil {
			return err
		}
	}
	return nil
}

// Code is an error code of RST_STREAM and GOAWAY.
type Code uint32

// The codes: RFC 9113 section 7.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code %d", uint32(c))
}

// Error is what a peer did that ends its connection: RFC 9113 section 5.4.1.
type Error struct {
	Code   Code
	Reason string
}

func (e Error) Error() string { return fmt.Sprintf("%v: %s", e.Code, e.Reason) }

// Unpad returns what a DATA or HEADERS frame holds between its pad length and its padding.
func Unpad(h Header, p []byte) ([]byte, error) {
	if !h.Has(Padded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, Error{FrameSizeError, "a padded frame without the length of its padding"}
	}
	if n := int(p[0]); n < len(p) {
		return p[1 : len(p)-n], nil
	}
	return nil, Error{ProtocolError, "padding that is longer than its frame"}
}
