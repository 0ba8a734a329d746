import functools
import sys

from prefork_executor import PreforkExecutor


class Table:
    def __reduce__(self):
        raise AssertionError("the table travels")


TABLE = Table()


def uses_table():
    return type(TABLE).__name__


def alone():
    return "old"


def helper():
    return "old"


def user_of_helper():
    return helper()


def user_of_user():
    return [user_of_helper() for _ in range(1)][0]


@functools.cache
def cached_helper():
    return "old"


def user_of_cached_helper():
    return cached_helper()


class Thing:
    def name(self):
        return "old"

    @property
    def title(self):
        return "old"

    class Part:
        def name(self):
            return "old"


class Derived(Thing):
    pass


def name_of_new_thing():
    return Thing().name()


def name_of(thing):
    return thing.name()


def title_of(thing):
    return thing.title


def user_of_what_is_not_there_yet():
    return what_is_not_there_yet()


def user_of_data():
    return data


data = "old"

if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:

        def now(function, *args):
            return executor.submit(function, *args).result()

        print(
            "before",
            now(alone),
            now(user_of_user),
            now(name_of_new_thing),
            now(name_of, Thing()),
            now(name_of, Derived()),
            now(name_of, Thing.Part()),
            now(user_of_cached_helper),
            now(user_of_data),
        )

        def alone():
            return "new"

        print("a function", now(alone))

        old_helper = helper

        def helper():
            return "new"

        print("a helper", now(user_of_helper), now(user_of_user), now(lambda: helper()))
        helper = old_helper
        print("and back", now(user_of_user))

        @functools.cache
        def cached_helper():
            return "new"

        print("a cached helper", now(user_of_cached_helper))

        def new_name(self):
            return "new"

        old_name, Thing.name = Thing.name, new_name
        print("a method", now(name_of_new_thing), now(name_of, Thing()), now(name_of, Derived()))
        Thing.name = old_name
        print("and back", now(name_of_new_thing), now(name_of, Derived()))
        Thing.title = property(lambda self: "new")
        print("a property", now(title_of, Thing()))
        Thing.Part.name = new_name
        print("a class in a class", now(name_of, Thing.Part()))

        class Thing:
            def name(self):
                return "new"

        print("a class", now(name_of_new_thing), now(name_of, Thing()))

        def what_is_not_there_yet():
            return "new"

        print("a new helper", now(user_of_what_is_not_there_yet))

        def data():
            return "no data"

        print("data that became a function", now(user_of_data)())

        print("the others stay where they are", now(uses_table))
