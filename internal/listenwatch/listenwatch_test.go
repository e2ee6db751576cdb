package listenwatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestPoll goes through the states of a port: opened, kept while it is missing for a moment, closed, refused.
func TestPoll(t *testing.T) {
	var now []int
	var events []string
	answers := map[int]error{2: errors.New("refused"), 3: ErrLater}
	w := Watcher[int]{
		Wanted: func() map[int]bool {
			m := map[int]bool{}
			for _, k := range now {
				m[k] = true
			}
			return m
		},
		Open: func(list []int) map[int]error {
			slices.Sort(list)
			for _, k := range list {
				events = append(events, fmt.Sprint("open ", k))
			}
			return answers
		},
		Close: func(list []int) {
			for _, k := range list {
				events = append(events, fmt.Sprint("close ", k))
			}
		},
		Missed: 2,
	}
	for i, step := range []struct {
		now  []int
		want []string
	}{
		{[]int{1}, []string{"open 1"}},
		{[]int{1}, nil},
		{nil, nil},
		{[]int{1}, nil}, // it has not been missing for long enough
		{nil, nil},
		{nil, []string{"close 1"}},
		{[]int{1}, []string{"open 1"}},
		{[]int{1, 2}, []string{"open 2"}},
		{[]int{1, 2}, nil}, // a port that was refused is not tried again
		{[]int{1}, nil},
		{[]int{1, 2}, []string{"open 2"}}, // but it is tried again after the server has listened again
		{[]int{1, 3}, []string{"open 3"}},
		{[]int{1, 3}, []string{"open 3"}}, // a port with ErrLater is tried again
	} {
		now, events = step.now, nil
		w.Poll()
		if !slices.Equal(events, step.want) {
			t.Errorf("step %d: %q, want %q", i, events, step.want)
		}
	}
}

// TestPollAtOnce: without Missed a port is closed at the first poll without it, before others are opened.
func TestPollAtOnce(t *testing.T) {
	var events []string
	now := map[int]bool{1: true}
	w := Watcher[int]{
		Wanted: func() map[int]bool { return now },
		Open:   func(list []int) map[int]error { events = append(events, fmt.Sprint("open ", list)); return nil },
		Close:  func(list []int) { events = append(events, fmt.Sprint("close ", list)) },
	}
	w.Poll()
	now = map[int]bool{2: true}
	w.Poll()
	if want := []string{"open [1]", "close [1]", "open [2]"}; !slices.Equal(events, want) {
		t.Errorf("%q, want %q", events, want)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	polls := 0
	w := Watcher[int]{Wanted: func() map[int]bool {
		if polls++; polls == 3 {
			cancel()
		}
		return nil
	}}
	w.Run(ctx, time.Millisecond)
	if polls != 3 {
		t.Errorf("%d polls", polls)
	}
}
