"""Settings: changed on their screen, by commands, and kept."""

from __future__ import annotations

from safesteer_edge.session.settings_file import with_setting
from safesteer_edge.session.settings_schema import UserSettings
from safesteer_edge.tui.widgets.composer import Composer
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import ScriptedModel


def test_the_guards_strength_is_changed_on_the_settings_screen_and_kept():
    async def test():
        saved: list[UserSettings] = []
        model = ScriptedModel()
        async with opened(model, save_setting=lambda _, new: saved.append(new)) as driver:
            await driver.send("before")
            await driver.ready()
            await driver.press("f4")
            await driver.sees("Settings")
            while True:
                await driver.press("down")
                if "guard.strength" in driver.screen_text():
                    break
            await driver.press("enter")
            await driver.type("3")
            await driver.press("enter")
            await driver.sees("strength 3.0 is below the bundle's 8.0")
            await driver.press("backspace")
            await driver.type("20")
            await driver.press("enter")
            await driver.sees("20.0")
            assert saved[-1].session.strength == 20.0
            await driver.press("escape")
            await driver.send("after")
            await driver.ready()
            assert model.session.turn_settings.strength == 20.0

    driven(test())


def test_monitor_and_off_are_unmistakable():
    async def test():
        model = ScriptedModel()
        async with opened(model) as driver:
            await driver.sees("guard: steer")
            await driver.send("/guard monitor")
            await driver.sees("MONITOR ONLY: the guard only watches")
            await driver.send("/guard off")
            await driver.sees("GUARD OFF: nothing is checked")
            await driver.send("hello")
            await driver.ready()
            assert model.session.turn_settings.guard == "off"
            composer = driver.app.chat.query_one(Composer)
            assert composer.styles.border_top[0] == "double"

    driven(test())


def test_a_setting_that_makes_no_sense_is_explained():
    async def test():
        async with opened() as driver:
            for typed, answer in (
                ("/temperature warm", "the temperature is a number, not 'warm'"),
                ("/temperature 99", "temperature is 99.0; expected 0.0 to 10.0"),
                ("/strength 1", "strength 1.0 is below the bundle's 8.0"),
                ("/gaurd off", "unknown command '/gaurd'; did you mean /guard?"),
                ("/seed 7", "seed is 7"),
            ):
                await driver.send(typed)
                await driver.sees(answer)

    driven(test())


def test_a_key_can_be_given_to_another_command():
    async def test():
        settings = UserSettings()
        object.__setattr__(settings.keys, "help", "f9")
        async with opened(user_settings=settings) as driver:
            await driver.press("f9")
            await driver.sees("new line (in any terminal")

    driven(test())


def test_what_names_a_key_names_the_one_of_the_settings():
    settings = with_setting(UserSettings(), "keys.help", "f8")
    settings = with_setting(settings, "keys.attach", "ctrl+t,f9")

    async def test():
        async with opened(user_settings=settings) as driver:
            await driver.sees("F8  all keys and commands")
            await driver.sees("F8 help · Ctrl+P menu")
            await driver.sees("Ctrl+T file")
            await driver.press("f8")
            await driver.sees("keys and commands  [F8]")

    driven(test())
